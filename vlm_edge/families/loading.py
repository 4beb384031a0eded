"""Loading and saving a checkpoint: a Hugging Face folder, and ``surgery.json`` where its shapes were changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.initialization import no_init_weights

from vlm_edge.checkpoints import open_clip
from vlm_edge.checkpoints.config import CONFIG_NAME, read_config, refuse_adapter
from vlm_edge.checkpoints.generation_settings import SETTINGS_NAME, read_settings
from vlm_edge.checkpoints.remote_code import build_with_code, refuse_code
from vlm_edge.checkpoints.weights import WEIGHTS_NAME, as_in_model, load_weights, read_weights, tied_aliases
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import Family
from vlm_edge.families.table import family_for
from vlm_edge.machine import usable_cpus
from vlm_edge.surgery.replay import SURGERY_NAME, apply_surgery, read_surgery

KEPT_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "token*.json",
    "*_tokens*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    open_clip.CONFIG_NAME,
    "LICENSE*",
    "NOTICE*",
)
"""Files that a derived checkpoint takes over as they are; a model card and a training log belong to other weights."""
KEPT_FOLDERS = ("qformer_tokenizer",)
"""Folders whose files are taken over by the same names: InstructBLIP's second tokenizer."""


_REFUSALS = (
    ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, OSError, RecursionError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""Exceptions of transformers, torch or a checkpoint's own code over a config.json that no model can be built from."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model in float32 and eval mode, the family that knows it, and the surgery that gave it its shapes."""

    model: nn.Module
    family: Family
    folder: Path
    surgery: tuple[dict[str, Any], ...] = ()


def find_family(folder: Path, config: Mapping[str, Any]) -> Family:
    """The family of the first of config.json's ``architectures``.

    Raises:
        VlmEdgeError: there is none, or no family knows it.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise VlmEdgeError(
            f"{folder / CONFIG_NAME}: architectures: must list the model's class, got {architectures!r}",
            'add it, as in "architectures": ["BlipForQuestionAnswering"]',
        )
    try:
        return family_for(architectures[0], config)
    except VlmEdgeError as error:
        task = _task_of(architectures[0])
        note = f" ({task}, by transformers)" if task else ""
        raise VlmEdgeError(f"{folder / CONFIG_NAME}: {error.message}{note}", error.hint) from error


def _task_of(architecture: str) -> str | None:
    """The task of transformers' class of this name (``text-generation``), as optimum's TasksManager has it."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    try:
        task: str = TasksManager.infer_task_from_model(getattr(transformers, architecture))
    except (AttributeError, ImportError, ValueError):
        return None
    return task


def build_model(
    folder: Path, family: Family, config: Mapping[str, Any], *, trust_remote_code: bool = False
) -> nn.Module:
    """The model of ``config.json`` with weights not loaded; torch's random state is left as it was.

    Raises:
        VlmEdgeError: transformers refuses the config's values.
    """
    from huggingface_hub.errors import StrictDataclassError

    values = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype", "quantization_config")}
    with torch.random.fork_rng(devices=[]):
        try:
            built = build_with_code(folder, config, values) if trust_remote_code else None
            return (built if built is not None else family.build(values)).float()
        except (StrictDataclassError, *_REFUSALS) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise VlmEdgeError(
                f"{folder / CONFIG_NAME}: no {family.architectures[0]} can be built from it: {reason}",
                "compare it with the config.json of a model of this architecture",
            ) from error


def outline_checkpoint(folder: Path) -> LoadedCheckpoint:
    """A checkpoint as :func:`load_checkpoint` gives it, but without weights: modules and shapes alone.

    Raises:
        VlmEdgeError: as :func:`load_checkpoint` does for what it reads beside the weights.
    """
    config = read_config(folder)
    refuse_code(folder, config)
    family, surgery = find_family(folder, config), read_surgery(folder)
    with torch.device("meta"):
        model = build_model(folder, family, config)
        apply_surgery(model, family, surgery, folder / SURGERY_NAME)
    return LoadedCheckpoint(model=model, family=family, folder=folder, surgery=surgery)


def load_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> LoadedCheckpoint:
    """Load a Hugging Face folder strictly: float32, eval mode, no pickle, and no code from the folder unless it is
    trusted.

    ``surgery.json`` is replayed on the freshly built model before the weights are loaded.

    Raises:
        VlmEdgeError: anything in the folder is missing, broken, unknown, or does not fit; the message names the file.
    """
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))  # torch knows no control group's quota
    config = read_config(folder)
    refuse_adapter(folder)
    if not trust_remote_code:
        refuse_code(folder, config)
    family = find_family(folder, config)
    state = read_weights(folder)
    surgery = read_surgery(folder)
    with no_init_weights(), torch.random.fork_rng(devices=[]):  # every weight is replaced: what is drawn costs memory
        model = build_model(folder, family, config, trust_remote_code=trust_remote_code)
        apply_surgery(model, family, surgery, folder / SURGERY_NAME)
    settings: Any = model
    if hasattr(settings, "tie_weights"):
        settings.tie_weights()  # otherwise done where weights are drawn
    if (folder / SETTINGS_NAME).is_file() and not family.inner_generate:
        settings.generation_config = read_settings(folder, settings.config).for_transformers()
    load_weights(model, as_in_model(model, family.rename_weights(state)), folder)
    return LoadedCheckpoint(model=model.float().eval(), family=family, folder=folder, surgery=surgery)


def save_checkpoint(
    folder: Path, model: nn.Module, loaded: LoadedCheckpoint, surgery: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write ``model`` as a complete checkpoint folder; the same model gives the same bytes.

    Config, generation config, tokenizer, processor and licence come from ``loaded``'s folder. ``surgery`` lists the
    operations done since ``loaded``; they are appended to its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((*loaded.folder.iterdir(), *loaded.folder.glob("*/*"))):
        inside = path.relative_to(loaded.folder)
        known = len(inside.parts) == 1 or inside.parts[0] in KEPT_FOLDERS
        if known and path.is_file() and any(path.match(pattern) for pattern in KEPT_FILES):
            (folder / inside).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / inside)
    config = read_config(loaded.folder) | {"dtype": "float32"}
    config.pop("torch_dtype", None)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    operations = [*loaded.surgery, *(dict(operation) for operation in surgery)]
    if operations:
        (folder / SURGERY_NAME).write_text(json.dumps(operations, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    aliases = tied_aliases(model)
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if name not in aliases
    }
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
