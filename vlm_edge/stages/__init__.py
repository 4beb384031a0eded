"""The table of stages. Importing it imports no torch, onnx, onnxruntime or transformers."""

from __future__ import annotations

from vlm_edge.core.stage import StageSpec
from vlm_edge.stages.compile import SPEC as COMPILE
from vlm_edge.stages.distill import SPEC as DISTILL
from vlm_edge.stages.export import SPEC as EXPORT
from vlm_edge.stages.prune import SPEC as PRUNE
from vlm_edge.stages.quantize import SPEC as QUANTIZE

STAGES: dict[str, StageSpec] = {spec.name: spec for spec in (EXPORT, QUANTIZE, PRUNE, DISTILL, COMPILE)}
