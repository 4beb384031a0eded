"""Lower graphs for OpenVINO: Q/DQ pairs, but for what its CPU plug-in can't take of them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vlm_edge.backends.lowering import LARGEST_BLOCK_OF_4_BITS, STATIC, Lowering
from vlm_edge.graphs.passes.compress_weights import CompressTables, CompressWeights, StoreHalf
from vlm_edge.graphs.passes.lower_linears import BlockLinears
from vlm_edge.graphs.passes.openvino_masks import ChooseMasks, FloatConcatenations
from vlm_edge.graphs.passes.retarget import RetargetActivations


class OpenVinoLowering(Lowering):
    """Unsigned: OpenVINO 2026.4 takes signed activations too, but pads convolutions of s8 data with a zero point
    wrongly: cosine 0.89 instead of 0.97 on a MobileViT."""

    @classmethod
    def on(cls, isa: str) -> OpenVinoLowering:
        return cls(weight_bits=7 if isa == "x86" else 8)

    def passes(self, model: ir.Model, scheme: str, left_out: frozenset[str]) -> Iterator[ir.passes.InPlacePass]:  # noqa: ARG002
        if scheme == "float16-weights":
            yield StoreHalf(left_out, smallest=1)  # OpenVINO stores all of them so, or none
            return
        if scheme in STATIC:
            yield RetargetActivations(self.signed)
            yield FloatConcatenations()
            yield ChooseMasks()
        elif scheme == "int4-weights":
            yield BlockLinears(4, LARGEST_BLOCK_OF_4_BITS, left_out)
        yield CompressWeights("cast", left_out)
        yield CompressTables("cast")
