"""The table of stages. Importing it imports no torch, onnx, onnxruntime or transformers."""

from __future__ import annotations

from vlm_edge.core.stage import StageSpec
from vlm_edge.stages import compile as compile_stage
from vlm_edge.stages import distill, export, prune, quantize

STAGES: dict[str, StageSpec] = {
    spec.name: spec for spec in (export.SPEC, quantize.SPEC, prune.SPEC, distill.SPEC, compile_stage.SPEC)
}
