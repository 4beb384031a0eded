"""Checkpoints that bring code along (``auto_map`` in one of their JSON files): refused, unless it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from vlm_edge.checkpoints.config import CONFIG_NAME, read_json_object
from vlm_edge.checkpoints.pretrained import SIDE_FILES
from vlm_edge.errors import VlmEdgeError

_HINT = "use a checkpoint in transformers' own classes; or read that code and export with --trust-remote-code"


def model_code(config: Mapping[str, Any]) -> str | None:
    """``file.Class`` of the model that a config.json wants to be built with, or None for transformers' own."""
    classes = config.get("auto_map")
    if not isinstance(classes, Mapping):
        return None
    return next((str(where) for name, where in classes.items() if name.startswith("AutoModel")), None)


def refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    """
    Raises:
        VlmEdgeError: a file of the checkpoint names code that comes with it, of whatever class; the message names both.
    """
    files = {CONFIG_NAME: config}
    files |= {name: read_json_object(folder / name) for name in SIDE_FILES if (folder / name).is_file()}
    for name, values in files.items():
        if classes := values.get("auto_map"):
            code = model_code(values) or str(classes)
            what = "the model is built by code" if model_code(values) else "it asks for code"
            raise VlmEdgeError(
                f"{folder / name}: auto_map: {what} that comes with it ({code[:200]}), which could do anything on this "
                "machine; it was not run",
                _HINT,
            )


def build_with_code(folder: Path, config: Mapping[str, Any], values: Mapping[str, Any]) -> nn.Module | None:
    """The model that the folder's own code builds from ``values``, weights not loaded; None where there is no code.

    Runs that code. Raises what it raises.
    """
    code = model_code(config)
    if code is None:
        return None
    settings = config["auto_map"].get("AutoConfig")
    model_class = _class_of(folder, code)
    config_class = model_class.config_class if settings is None else _class_of(folder, str(settings))
    model: nn.Module = model_class(config_class.from_dict(dict(values), attn_implementation="eager"))
    return model


def _class_of(folder: Path, code: str) -> Any:
    """The class ``file.Class`` of the folder's own code: of no other repository."""
    file, _, name = code.partition(".")
    if not file.isidentifier() or not name.isidentifier():
        raise VlmEdgeError(
            f"{folder / CONFIG_NAME}: auto_map: {code[:200]!r} is not FILE.CLASS, a class in a file of this folder",
            "put the code that it names into the folder, and name it so",
        )
    if not (folder / f"{file}.py").is_file():
        raise VlmEdgeError(
            f"{folder / CONFIG_NAME}: auto_map: {code}: no {file}.py in the folder",
            "copy the code from the model's page into the folder, and read it",
        )
    return get_class_from_dynamic_module(code, str(folder), local_files_only=True)
