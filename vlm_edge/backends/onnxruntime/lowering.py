"""Lower graphs for onnxruntime: linear layers and dense convolutions as its own integer operators, all else float."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from vlm_edge.backends.lowering import LARGEST_BLOCK_OF_4_BITS, STATIC, Lowering
from vlm_edge.graphs.passes.compress_weights import CompressTables, CompressWeights, StoreHalf
from vlm_edge.graphs.passes.fuse_silu import FuseSilu
from vlm_edge.graphs.passes.lower_convolutions import LowerConvolutions
from vlm_edge.graphs.passes.lower_linears import BlockLinears, DynamicLinears, LowerLinears
from vlm_edge.graphs.passes.retarget import RetargetActivations

LARGEST_BLOCK_OF_8_BITS = 128
"""8 bits have accuracy to spare, and 128 input channels that share a scale are 1.2 times as fast as 32."""


class OnnxRuntimeLowering(Lowering):
    """``cast`` for weights of what stays float: onnxruntime folds Cast and Mul into a constant when it loads them."""

    rounds_outputs: ClassVar[bool] = True

    @classmethod
    def on(cls, isa: str) -> OnnxRuntimeLowering:
        return cls(signed=isa in ("arm", "cuda"), weight_bits=7 if isa == "x86" else 8)

    def passes(self, model: ir.Model, scheme: str, left_out: frozenset[str]) -> Iterator[ir.passes.InPlacePass]:
        if scheme == "float16-weights":
            yield StoreHalf(left_out)
            return
        if scheme in STATIC:
            yield RetargetActivations(self.signed)
            yield LowerLinears()
            yield LowerConvolutions()
        elif scheme == "int8-dynamic":
            yield DynamicLinears(self.weight_bits, left_out)
        elif scheme == "int4-weights":
            yield BlockLinears(4, LARGEST_BLOCK_OF_4_BITS, left_out)
        elif scheme == "int8-weights" and self.weight_bits == 8 and _takes_steps(model):
            yield BlockLinears(8, LARGEST_BLOCK_OF_8_BITS, left_out)
        yield CompressWeights("cast", left_out)
        yield CompressTables(None)
        yield FuseSilu()


def _takes_steps(model: ir.Model) -> bool:
    """True for a decoder with a cache, which runs on one row at a time."""
    return any(str(value.name).startswith("past_key_values") for value in model.graph.inputs)
