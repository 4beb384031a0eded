"""Lower graphs for TensorRT: explicit quantization with symmetric pairs, where NNCF puts them for a transformer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from vlm_edge.backends.lowering import STATIC, Lowering
from vlm_edge.backends.tensorrt.nncf_pairs import place_pairs, structure_of, with_constants_of
from vlm_edge.backends.tensorrt.rules import require_tensorrt_rules
from vlm_edge.graphs.passes.compress_weights import CompressBlocks, CompressTables, CompressWeights
from vlm_edge.graphs.passes.retarget import SymmetricActivations
from vlm_edge.graphs.passes.tensorrt_form import TensorRtForm
from vlm_edge.quantization.calibration import Feeds

BLOCK_OF_4_BITS = 64
"""Input channels that share a scale: TensorRT takes 64 and 128 for 4 bits ("Quantization Schemes")."""


@dataclass(frozen=True)
class TensorRtLowering(Lowering):
    """Activation zero points are 0: TensorRT has no others.

    NNCF looks at a graph for as long as all the rest of its quantization takes, so that the last one's places are kept
    for another attempt, which has other constants or ranges.
    """

    symmetric: ClassVar[bool] = True
    _placed: dict[Any, ir.Model] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def on(cls, isa: str) -> TensorRtLowering:
        del isa  # TensorRT runs on one kind of device
        return cls(signed=True)

    def place(self, model: ir.Model, held_out: Feeds, left_out: frozenset[str]) -> ir.Model:
        key = left_out, structure_of(model)
        if (known := self._placed.get(key)) is not None:
            return with_constants_of(model, known.clone())
        self._placed.clear()
        self._placed[key] = place_pairs(model, held_out, left_out)
        return self._placed[key].clone()

    def passes(self, model: ir.Model, scheme: str, left_out: frozenset[str]) -> Iterator[ir.passes.InPlacePass]:  # noqa: ARG002
        if scheme in STATIC:
            yield SymmetricActivations()
        elif scheme == "int4-weights":
            yield CompressBlocks(BLOCK_OF_4_BITS, left_out)
        yield CompressWeights("dequantize", left_out)
        yield CompressTables("dequantize")
        yield TensorRtForm()

    def check(self, path: Path) -> None:
        require_tensorrt_rules(path)
