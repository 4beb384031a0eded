"""OpenVINO engines: the precision of what is not INT8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_edge.engines.openvino import OpenVinoEngine, computes_bfloat16
from vlm_edge.numerics.quantization import agreement
from vlm_edge.processing.manifest import Component
from vlm_edge.stages.compile_check import MIN_COSINE, ReferenceEngine
from vlm_edge.stages.compile_tune import MARGIN, race

BFLOAT16: dict[str, str | int | float | bool] = {"INFERENCE_PRECISION_HINT": "bf16"}


def tuned_row(path: Path, row: Component, reference: ReferenceEngine) -> tuple[Component, dict[str, Any]]:
    """An INT8 component's row with bfloat16 for what is float in it, where this CPU has it, it is faster, and no
    output strays from the graph's; and facts."""
    if not computes_bfloat16():
        return row, {"float_layers": "f32", "reason": "this CPU has no bfloat16 products"}
    engines = [OpenVinoEngine(path, row, threads=1, options=options) for options in ({}, BFLOAT16)]
    pairs = ((outputs, engines[1].infer(feed)) for feed, outputs in reference.runs)
    cosine = min(value.cosine for value in agreement(pairs).values())
    if cosine < MIN_COSINE:
        return row, {"float_layers": "f32", "reason": f"with bf16 outputs have a cosine of {cosine:.6f}"}
    plain, mixed = race(engines, [feed for feed, _ in reference.single])
    if mixed > plain * (1 - MARGIN):
        return row, {"float_layers": "f32", "reason": f"with bf16 it takes {mixed / plain:.3f} times as long"}
    options = {**row.options, **BFLOAT16}
    return row.model_copy(update={"options": options}), {
        "float_layers": "bf16",
        "faster_than_untuned": round(plain / mixed, 3),
    }
