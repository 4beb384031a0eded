"""Checkpoints that bring the code of their own model (``auto_map`` in config.json): refused, unless it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from vlm_edge.errors import VlmEdgeError


def model_code(config: Mapping[str, Any]) -> str | None:
    """``file.Class`` of the model that a config.json wants to be built with, or None for transformers' own."""
    classes = config.get("auto_map")
    if not isinstance(classes, Mapping):
        return None
    return next((str(where) for name, where in classes.items() if name.startswith("AutoModel")), None)


def refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    """
    Raises:
        VlmEdgeError: the checkpoint brings code.
    """
    code = model_code(config)
    if code is not None:
        raise VlmEdgeError(
            f"{folder / 'config.json'}: auto_map: the model is built by code that comes with it ({code}), which could "
            "do anything on this machine; it was not run",
            "use a checkpoint in transformers' own classes; or read that code and export with --trust-remote-code",
        )


def build_with_code(folder: Path, config: Mapping[str, Any], values: Mapping[str, Any]) -> nn.Module | None:
    """The model that the folder's own code builds from ``values``, weights not loaded; None where there is no code.

    Runs that code. Raises what it raises.
    """
    code = model_code(config)
    if code is None:
        return None
    model_class = get_class_from_dynamic_module(code, str(folder), local_files_only=True)
    settings = config["auto_map"].get("AutoConfig")
    config_class = (
        model_class.config_class
        if settings is None
        else get_class_from_dynamic_module(settings, str(folder), local_files_only=True)
    )
    model: nn.Module = model_class(config_class.from_dict(dict(values), attn_implementation="eager"))
    return model
