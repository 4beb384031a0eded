"""OpenVINO engines: the precision of what is not INT8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_edge.engines.base import Engine
from vlm_edge.engines.openvino import OpenVinoEngine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import computes_bfloat16
from vlm_edge.processing.manifest import Component
from vlm_edge.stages.compile_check import ReferenceEngine, check_component
from vlm_edge.stages.compile_tune import MARGIN, race

BFLOAT16: dict[str, str | int | float | bool] = {"INFERENCE_PRECISION_HINT": "bf16"}


def tuned_row(
    name: str, path: Path, row: Component, reference: ReferenceEngine, floating: Callable[[], Engine]
) -> tuple[Component, dict[str, Any]]:
    """An INT8 component's row, with bfloat16 for what is float in it where this CPU has it, it is faster and it passes
    the check of engines; and facts. Arguments as :func:`vlm_edge.stages.compile_check.check_component`."""
    if not computes_bfloat16():
        return row, {"float_layers": "f32", "reason": "this CPU has no bfloat16 products"}
    plain, mixed = (OpenVinoEngine(path, row, threads=1, options=options) for options in ({}, BFLOAT16))
    try:
        check_component(name, mixed, reference, floating)
    except VlmEdgeError as error:
        return row, {"float_layers": "f32", "reason": f"with bf16: {error.message}"}
    slow, fast = race((plain, mixed), reference.single_feeds())
    if fast > slow * (1 - MARGIN):
        return row, {"float_layers": "f32", "reason": f"with bf16 it takes {fast / slow:.3f} times as long"}
    found = {"float_layers": "bf16", "faster_than_untuned": round(slow / fast, 3)}
    return row.model_copy(update={"options": {**row.options, **BFLOAT16}}), found
