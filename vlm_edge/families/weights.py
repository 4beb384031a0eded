"""A checkpoint's tensors: read from safetensors only, and loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlm_edge.errors import VlmEdgeError

WEIGHTS_NAME = "model.safetensors"
OTHER_WEIGHTS_NAMES = ("open_clip_model.safetensors",)
INDEX_NAME = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NEVER_SAVED = "position_ids"
"""Buffers that older transformers saved; every model makes them itself."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of ``model.safetensors``, or of the shards that its index lists; floating ones as float32.

    Raises:
        VlmEdgeError: there are none, they are pickled, a file is missing or corrupt.
    """
    state: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors = load_file(path, backend="pread")  # mapped pages would count beside the model's own
        except (SafetensorError, OSError) as error:
            raise VlmEdgeError(
                f"{path}: truncated or corrupt ({path.stat().st_size} bytes): {error}", "download or copy it again"
            ) from error
        state.update(tensors)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _weight_files(folder: Path) -> list[Path]:
    for name in (WEIGHTS_NAME, *OTHER_WEIGHTS_NAMES):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VlmEdgeError(f"{index}: no readable weight_map", "copy the file from its source again") from error
        missing = [name for name in shards if Path(name).name != name or not (folder / name).is_file()]
        if missing:
            raise VlmEdgeError(f"{index}: no shard {', '.join(missing)} in {folder}", "download or copy it again")
        return [folder / name for name in shards]
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise VlmEdgeError(
            f"{folder / pickled[0]}: pickled weights are refused, because loading a pickle can run any code in it",
            "if you trust the source, convert once where it is safe: "
            "transformers' MODEL_CLASS.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes safetensors",
        )
    raise VlmEdgeError(
        f"{folder}: no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}",
        "give the folder that save_pretrained wrote, or download the model again",
    )


def tied_aliases(model: nn.Module) -> dict[str, str]:
    """{name: name of the tensor that it shares}: what safetensors leaves out."""
    aliases: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    return aliases


def load_weights(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Load ``state`` into ``model``: every tensor must be there, none left over, every shape right.

    The model takes the tensors themselves, so that no weight is in memory twice; ``state`` must not be used after.
    Tied tensors may be given once, under either name. Given twice with different values they are untied, as
    transformers does (modeling_utils.py, tie_weights).

    Raises:
        VlmEdgeError: tensors are missing, unexpected, or of another shape; the first few are named.
    """
    state = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] != NEVER_SAVED}
    for alias, source in list(tied_aliases(model).items()):
        if alias in state and source in state and not torch.equal(state[alias], state[source]):
            _untie(model, alias)
        elif alias in state or source in state:
            state[alias] = state[source] = state[source] if source in state else state[alias]
    expected = model.state_dict()
    faults = [
        _listed("missing", sorted(expected.keys() - state.keys())),
        _listed("unexpected", sorted(state.keys() - expected.keys())),
        _listed(
            "of another shape",
            [
                f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
                for name, tensor in expected.items()
                if name in state and state[name].shape != tensor.shape
            ],
        ),
    ]
    if any(faults):
        raise VlmEdgeError(
            f"{folder}: the weights do not fit config.json; {'; '.join(fault for fault in faults if fault)}",
            "weights, config.json and surgery.json must come from one checkpoint: copy the whole folder again",
        )
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in state.items():
        own[name].data = tensor.to(own[name].dtype).contiguous()


def _untie(model: Any, alias: str) -> None:
    """Give the tensor at ``alias`` storage of its own."""
    parent, _, name = alias.rpartition(".")
    module = model.get_submodule(parent)
    setattr(module, name, nn.Parameter(getattr(module, name).detach().clone()))
    del model.all_tied_weights_keys[alias]


def _listed(what: str, names: Iterable[str], shown: int = 3) -> str:
    """``3 missing tensors: a, b, c``, or nothing."""
    listed = list(names)
    if not listed:
        return ""
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return f"{len(listed)} {what} tensor{'s' * (len(listed) > 1)}: {', '.join(listed[:shown])}{more}"
