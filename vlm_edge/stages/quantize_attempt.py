"""One way of quantizing a component: a scheme in a target's form, and how its result agrees with the float graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from vlm_edge.backends.lowering import Lowering
    from vlm_edge.processing.manifest import Component
    from vlm_edge.quantization.calibration import Feeds
    from vlm_edge.quantization.static import StaticGraph, StaticSettings
    from vlm_edge.quantizers.affine import Agreement
    from vlm_edge.stages.quantize_capture import Captured


@dataclass(frozen=True)
class Attempt:
    """A quantized graph, which nodes are float in it, and how its outputs agree with the float graph's."""

    scheme: str
    graph: ir.Model
    left_out: frozenset[str]
    outputs: dict[str, Agreement]
    static: StaticGraph | None = None
    settings: StaticSettings | None = None

    @property
    def worst(self) -> str:
        return min(self.outputs, key=lambda output: self.outputs[output].cosine)

    @property
    def cosine(self) -> float:
        return self.outputs[self.worst].cosine

    @property
    def sqnr_db(self) -> float:
        return min(each.sqnr_db for each in self.outputs.values())

    def as_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"scheme": self.scheme, "cosine": round(self.cosine, 6)}
        if self.settings is not None:
            facts |= {"ranges": self.settings.ranges, "float_layers": len(self.left_out)}
        return facts


def quantize_graph(
    model: ir.Model, scheme: str, feeds: Feeds, lowering: Lowering, *, settings: StaticSettings | None = None
) -> ir.Model:
    """One float graph in one scheme (a recipe's, or ``int8-smooth``); ``model`` is prepared for it in place.

    Raises:
        VlmEdgeError: there is no input to calibrate on, or NNCF can't quantize it.
    """
    from vlm_edge.backends.lowering import STATIC
    from vlm_edge.quantization.calibration import Calibration
    from vlm_edge.quantization.static import StaticSettings, static_graph

    prepare(model)
    settings = settings or StaticSettings(smooth=scheme == "int8-smooth")
    if scheme in STATIC:
        model = static_graph(model, Calibration(feeds), feeds, lowering, settings).quantized
    return lowering.lower(model, scheme, settings.left_out)


def prepare(model: ir.Model) -> ir.Model:
    """A float graph, changed in place, as quantization wants it: no transposed constants, every node with a name."""
    from vlm_edge.graphs.passes.prepare import FoldTransposedConstants, NameNodes

    FoldTransposedConstants()(model)
    NameNodes()(model)
    return model


def check(path: Path, component: Component, captured: Captured, threads: int) -> dict[str, Agreement]:
    """Agreement of every output with the float graph's on the held-out runs, on onnxruntime."""
    from vlm_edge.backends.compiling import reference_engine
    from vlm_edge.quantizers.affine import agreement

    engine = reference_engine(path, component, threads, {"graph_optimization": "basic"})
    pairs = (
        (reference, engine.infer(feed)) for feed, reference in zip(captured.held_out, captured.references, strict=True)
    )
    return agreement(pairs)
