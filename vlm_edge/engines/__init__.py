"""The table of engines. Each module is imported when it is asked for, so that one missing package hides no other."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_edge.engines.base import Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.names import near
from vlm_edge.processing.manifest import Component

ENGINES: dict[str, tuple[str, str]] = {
    "onnxruntime": ("vlm_edge.engines.onnxruntime", "OnnxRuntimeEngine"),
    "openvino": ("vlm_edge.engines.openvino", "OpenVinoEngine"),
    "tensorrt": ("vlm_edge.engines.tensorrt", "TensorRtEngine"),
}
"""Engines that load a file: name -> module and class. The torch engine (``engines/torch.py``) takes a module instead
and is built directly: the runtime never imports torch."""


def load_engine(
    name: str,
    model_path: Path,
    component: Component,
    threads: int = 1,
    options: Mapping[str, str | int | float | bool] | None = None,
) -> Engine:
    """Load one component's file into an engine.

    Args:
        name: a key of ``ENGINES``.
        model_path: an ONNX file (onnxruntime, openvino), an IR ``.xml`` (openvino) or a ``.plan`` (tensorrt).
        component: its inputs and outputs, from the manifest.
        threads: intra-op threads; engines on a GPU ignore it.
        options: the engine's own, as the compile stage wrote them into the manifest; the component's replace them.

    Raises:
        VlmEdgeError: the engine is unknown or can't run here, the file is missing or corrupt, an option is unknown.
    """
    require_engine(name)
    if not model_path.is_file():
        raise VlmEdgeError(f"{model_path}: no such model file", "export or compile the model again")
    module, attribute = ENGINES[name]
    engine: Engine = getattr(importlib.import_module(module), attribute)(
        model_path, component, threads=threads, options={**(options or {}), **component.options}
    )
    return engine


def require_engine(name: str) -> None:
    """Nothing, if the engine can run on this machine.

    Raises:
        VlmEdgeError: it can't: the message says what is missing.
    """
    reason = engine_available(name)
    if reason is not None:
        raise VlmEdgeError(f"engine {name}: {reason}", "see `vlm-edge doctor` for what can run on this machine")


def engine_version(name: str) -> str:
    """The version of an engine that can run here."""
    require_engine(name)
    return str(importlib.import_module(name).__version__)


def engine_available(name: str) -> str | None:
    """None when the engine can run on this machine, else the reason why not, with the next step.

    Raises:
        VlmEdgeError: there is no engine of that name.
    """
    if name not in ENGINES:
        raise VlmEdgeError(f"engine {name!r} is unknown", near(name, ENGINES))
    reason: Any = importlib.import_module(ENGINES[name][0]).unavailable()
    return None if reason is None else str(reason)
