"""A checkpoint's tensors: read from safetensors only, and loaded strictly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from vlm_edge.checkpoints.config import CONFIG_NAME, MERGE_HINT, read_json_object
from vlm_edge.errors import VlmEdgeError

WEIGHTS_NAME = "model.safetensors"
OTHER_WEIGHTS_NAMES = ("open_clip_model.safetensors",)
INDEX_NAME = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types of weights that can be read as numbers; others (integers, 8-bit floats) mean something only with scales."""
QUANTIZED_TYPES = (
    torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip
"""Types that quantized weights are stored in; no model here has buffers of them."""
QUANTIZED_NAMES = (
    ".qweight", ".qzeros", ".g_idx", ".absmax", ".quant_map", ".SCB", ".weight_scale", ".weight_scale_inv",
    ".weight_packed", ".quant_state",
)  # fmt: skip
"""Parts of tensors' names that GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors add."""
NEVER_SAVED = "position_ids"
"""Buffers that older transformers saved; every model makes them itself."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of ``model.safetensors``, or of the shards that its index lists; floating ones as float32.

    Raises:
        VlmEdgeError: there are none, they are pickled or quantized, a file is missing or corrupt, or a weight is NaN or
            infinite.
    """
    state: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors = load_file(path, backend="pread")  # mapped pages would count beside the model's own
        except (SafetensorError, OSError) as error:
            raise VlmEdgeError(
                f"{path}: truncated or corrupt ({path.stat().st_size} bytes): {error}", "download or copy it again"
            ) from error
        for name, tensor in tensors.items():
            state[name] = _as_float32(tensor, name, path)
    return state


def _as_float32(tensor: Tensor, name: str, path: Path) -> Tensor:
    """A floating tensor as float32, any other as it is."""
    if not tensor.is_floating_point():
        return tensor
    if tensor.dtype not in FLOATS:
        raise _unfit(path.parent, f"{path}: {name} is stored as {_type(tensor)}", {name: tensor})
    values = tensor.float()
    if values.numel() and not all(limit.isfinite() for limit in torch.aminmax(values)):
        raise VlmEdgeError(
            f"{path}: {name}: holds NaN or infinity, of {values.numel():,} values {int((~values.isfinite()).sum()):,}",
            "the checkpoint is broken: train it again, or take an earlier one"
            if tensor.isfinite().logical_not().any()
            else "its values are beyond float32: save it in float32",
        )
    return values


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _weight_files(folder: Path) -> list[Path]:
    for name in (WEIGHTS_NAME, *OTHER_WEIGHTS_NAMES):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / INDEX_NAME
    if index.is_file():
        files = read_json_object(index).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise VlmEdgeError(f"{index}: no readable weight_map", "copy the file from its source again")
        for name, shard in files.items():
            if not isinstance(shard, str) or not shard.endswith(".safetensors"):
                raise VlmEdgeError(
                    f"{index}: weight_map.{name}: must name a .safetensors file, got {str(shard)[:100]!r}",
                    "copy the file from its source again",
                )
        shards = sorted(set(files.values()))
        present = {path.name for path in folder.iterdir() if path.is_file()}
        missing = [name for name in shards if name not in present]
        if missing:
            named = ", ".join(missing)[:300]
            raise VlmEdgeError(f"{index}: no shard {named} in {folder}", "download or copy it again")
        return [folder / name for name in shards]
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise VlmEdgeError(
            f"{folder / pickled[0]}: pickled weights are refused, because loading a pickle can run any code in it",
            "if you trust the source, convert once where it is safe: "
            "transformers' MODEL_CLASS.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes safetensors",
        )
    variants = sorted(path.name for path in folder.glob("model.*.safetensors*"))
    if variants:
        raise VlmEdgeError(
            f"{folder / variants[0]}: a variant of the weights, and there is no {WEIGHTS_NAME}",
            f"write it once: transformers' MODEL_CLASS.from_pretrained(FOLDER, variant="
            f"{variants[0].split('.')[1].partition('-')[0]!r}).save_pretrained(NEW_FOLDER)",
        )
    raise VlmEdgeError(
        f"{folder}: no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}",
        "give the folder that save_pretrained wrote, or download the model again",
    )


def as_in_model(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under the names of ``model``'s own tensors.

    transformers 5 renamed modules and kept the files' names; from_pretrained converts on the way in
    (core_model_loading.py, convert_and_load_state_dict_in_model), by the rules of conversion_mapping.py used here.
    Names that no rule knows are kept, for :func:`load_weights` to judge.
    """
    expected = model.state_dict()
    if state.keys() <= expected.keys():
        return dict(state)
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    collected: dict[str, Any] = {}
    for name in sorted(state, key=dot_natural_key):
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, expected)
        if new not in expected:
            new, pattern = name, None
        rule = deepcopy(by_pattern[pattern]) if pattern else WeightRenaming(name, new)
        collected.setdefault(new, rule).add_tensor(new, name, pattern or name, state[name])
    converted: dict[str, Tensor] = {}
    for first, rule in collected.items():
        for name, value in rule.convert(first, model=model, config=model.config).items():
            converted[name] = value[0] if isinstance(value, list) else value
    return converted


def tied_aliases(model: nn.Module) -> dict[str, str]:
    """{name: name of the tensor that it shares}; safetensors leaves these out."""
    aliases: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    return aliases


def load_weights(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Load ``state`` into ``model``: every tensor must be there, none left over, every shape right.

    The model takes the tensors themselves, so that no weight is in memory twice; ``state`` must not be used after.
    Tied tensors may be given once, under either name. Given twice with different values they are untied, as
    transformers does (modeling_utils.py, tie_weights).

    Raises:
        VlmEdgeError: tensors are missing, unexpected, of another shape, or integers where the model has floats; the
            first few are named, and what is known to look like that: a quantized checkpoint, an adapter.
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
            "of another type",
            [
                f"{name} {_type(state[name])} instead of {_type(tensor)}"
                for name, tensor in expected.items()
                if name in state and not _same_kind(state[name], tensor)
            ],
        ),
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
        told = "; ".join(fault for fault in faults if fault)
        raise _unfit(folder, f"{folder}: the weights do not fit config.json; {told}", state)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in state.items():
        own[name].data = tensor.to(own[name].dtype).contiguous()


def _same_kind(given: Tensor, own: Tensor) -> bool:
    """Whether one can stand for the other: floats for floats, else the very type."""
    return given.is_floating_point() if own.is_floating_point() else given.dtype == own.dtype


def _unfit(folder: Path, message: str, state: Mapping[str, Tensor]) -> VlmEdgeError:
    """An error about weights that don't fit a float model, with the next step for what the folder is."""
    if any(part in name for name in state for part in (".base_layer.", ".lora_A.", ".lora_B.")):
        return VlmEdgeError(f"{message}; they are those of an unmerged PEFT adapter", MERGE_HINT)
    config = folder / CONFIG_NAME
    settings = read_json_object(config).get("quantization_config") if config.is_file() else None
    method = settings.get("quant_method", "unnamed") if isinstance(settings, dict) else None
    marked = any(f"{part}." in f"{name}." for name in state for part in QUANTIZED_NAMES)
    if method is None and not marked and not any(tensor.dtype in QUANTIZED_TYPES for tensor in state.values()):
        return VlmEdgeError(
            message, "weights, config.json and surgery.json must come from one checkpoint: copy the whole folder again"
        )
    named = f"{CONFIG_NAME}: quantization_config: {method}" if method else "no quantization_config says by what"
    return VlmEdgeError(
        f"{message}; this is a quantized checkpoint ({named})",
        "give the float checkpoint that it was made from; or, where transformers can (bitsandbytes, FP8), dequantize "
        "it once: MODEL_CLASS.from_pretrained(FOLDER).dequantize().save_pretrained(NEW_FOLDER)",
    )


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
