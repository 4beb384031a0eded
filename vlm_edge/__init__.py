"""vlm-edge: take a vision-language model to an edge box and prove that it still works.

The names of :data:`__all__` are the Python API. Each is imported when it is first used, so that ``import vlm_edge``
loads nothing, and a device never loads what compresses. docs/python-api.md describes them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_edge.api import (
        Against,
        check_recipe,
        find_target,
        find_task,
        gate_run,
        plan_recipe,
        run_recipe,
        run_stage,
    )
    from vlm_edge.core.measurement import Timing
    from vlm_edge.core.record import read_record
    from vlm_edge.errors import RecipeError, UsageError, VlmEdgeError
    from vlm_edge.runtime import (
        AnswerHeadPipeline,
        CaptioningPipeline,
        DualEncoderPipeline,
        EmbeddingPipeline,
        GeneratePipeline,
        MatchingPipeline,
        Request,
        VqaPipeline,
        load_pipeline,
    )

__version__ = "0.1.0"

__all__ = [
    "Against",
    "AnswerHeadPipeline",
    "CaptioningPipeline",
    "DualEncoderPipeline",
    "EmbeddingPipeline",
    "GeneratePipeline",
    "MatchingPipeline",
    "RecipeError",
    "Request",
    "Timing",
    "UsageError",
    "VlmEdgeError",
    "VqaPipeline",
    "check_recipe",
    "find_target",
    "find_task",
    "gate_run",
    "load_pipeline",
    "plan_recipe",
    "read_record",
    "run_recipe",
    "run_stage",
]

_MODULES = ("vlm_edge.errors", "vlm_edge.runtime", "vlm_edge.core.measurement", "vlm_edge.core.record", "vlm_edge.api")
"""Modules that define the names of ``__all__``, the lightest first."""


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__`` on its first use (PEP 562)."""
    if name in __all__:
        for module in map(importlib.import_module, _MODULES):
            if hasattr(module, name):
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
