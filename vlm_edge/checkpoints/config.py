"""A checkpoint's config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlm_edge.checkpoints import open_clip
from vlm_edge.errors import VlmEdgeError

CONFIG_NAME = "config.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
MERGE_HINT = (
    "merge it once, with peft: model = peft.PeftModel.from_pretrained(MODEL_CLASS.from_pretrained(BASE), ADAPTER); "
    "model.merge_and_unload().save_pretrained(NEW_FOLDER); and copy the base's tokenizer and processor files there"
)
"""The way from an adapter of PEFT to a checkpoint."""


def read_json_object(path: Path) -> dict[str, Any]:
    """One JSON object from a file.

    Raises:
        VlmEdgeError: the file can't be read, holds no JSON, or no object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise VlmEdgeError(f"{path}: can't be read: {error.strerror}", "check the file's permissions") from error
    except (ValueError, RecursionError) as error:
        raise VlmEdgeError(f"{path}: not valid JSON: {error}", "copy the file from its source again") from error
    if not isinstance(value, dict):
        raise VlmEdgeError(f"{path}: must hold a JSON object, got {type(value).__name__}", "copy it from its source")
    return value


def refuse_adapter(folder: Path) -> None:
    """
    Raises:
        VlmEdgeError: a PEFT adapter lies in the folder: weights that mean something only with those of another model.
    """
    path = folder / ADAPTER_CONFIG_NAME
    if path.is_file():
        base = read_json_object(path).get("base_model_name_or_path") or "the base model"
        raise VlmEdgeError(f"{path}: a PEFT adapter of {str(base)[:200]!r}, which is not merged into it", MERGE_HINT)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder; for an open_clip folder, the one that transformers would have written.

    Raises:
        VlmEdgeError: the folder or the file is missing, the file is no JSON object, or CLIPModel can't be what
            open_clip's file asks for.
    """
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "no such folder"
        raise VlmEdgeError(
            f"{folder}: {state}", "give a Hugging Face model folder: config.json, *.safetensors, tokenizer"
        )
    if not (folder / CONFIG_NAME).is_file():
        path = folder / open_clip.CONFIG_NAME
        if path.is_file():
            return open_clip.clip_config(read_json_object(path), path)
        refuse_adapter(folder)
        raise VlmEdgeError(
            f"{folder}: no {CONFIG_NAME}, so this is no Hugging Face model folder",
            "give the folder that save_pretrained wrote",
        )
    return read_json_object(folder / CONFIG_NAME)
