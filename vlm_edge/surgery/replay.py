"""Replay surgery on a freshly built model: changes of its shapes that config.json can't say, in their order.

``{"op": "prune_heads", "site": path of an attention site, "keep": [head, ...]}``
``{"op": "replace_vision_tower", "student": name, "config": {...}}``
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from vlm_edge.errors import VlmEdgeError
from vlm_edge.surgery.heads import HeadLayout, prune_heads

SURGERY_NAME = "surgery.json"
_HINT = "the file belongs to the checkpoint's weights: copy the whole folder from its source again"


class Operable(Protocol):
    """A family, as far as surgery needs it: its attention sites, and its vision tower."""

    @property
    def name(self) -> str: ...
    @property
    def vision_tower_path(self) -> str: ...
    @property
    def student_fits(self) -> bool: ...
    def attention_sites(self, model: nn.Module) -> Sequence[HeadLayout]: ...


def read_surgery(folder: Path) -> tuple[dict[str, Any], ...]:
    """The operations in ``folder/surgery.json``, or none.

    Raises:
        VlmEdgeError: the file is no JSON list of objects.
    """
    path = folder / SURGERY_NAME
    if not path.is_file():
        return ()
    try:
        operations = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VlmEdgeError(f"{path}: not valid JSON: {error}", _HINT) from error
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise VlmEdgeError(f"{path}: must hold a list of objects", _HINT)
    return tuple(operations)


def apply_surgery(model: nn.Module, family: Operable, operations: Sequence[Mapping[str, Any]], place: Path) -> None:
    """Do every operation on ``model``, in place and in order. ``place`` names the file in error messages.

    Raises:
        VlmEdgeError: an operation is unknown, lacks a field, or does not fit the model.
    """
    replays = {"prune_heads": _prune_heads, "replace_vision_tower": _replace_vision_tower}
    for index, operation in enumerate(operations):
        replay = replays.get(str(operation.get("op")))
        if replay is None:
            known = ", ".join(sorted(replays))
            raise VlmEdgeError(f"{place}: [{index}].op: unknown {operation.get('op')!r}; known: {known}", _HINT)
        try:
            replay(model, family, operation)
        except KeyError as error:
            raise VlmEdgeError(f"{place}: [{index}]: no {error} in {dict(operation)}", _HINT) from error
        except (TypeError, ValueError) as error:
            raise VlmEdgeError(f"{place}: [{index}]: {error}", _HINT) from error
        except VlmEdgeError as error:
            raise VlmEdgeError(f"{place}: [{index}]: {error.message}", error.hint or _HINT) from error


def _prune_heads(model: nn.Module, family: Operable, operation: Mapping[str, Any]) -> None:
    sites = {site.path: site for site in family.attention_sites(model)}
    if operation["site"] not in sites:
        raise VlmEdgeError(f"site: the model has no attention at {operation['site']!r}")
    prune_heads(model, sites[operation["site"]], operation["keep"])


def _replace_vision_tower(model: nn.Module, family: Operable, operation: Mapping[str, Any]) -> None:
    from vlm_edge.students.mobilevit import build_vision_student

    if not family.student_fits:
        raise VlmEdgeError(
            f"no student can take the place of the vision tower of family {family.name}: more of it is read than its "
            "last hidden state",
            "leave distill out of the recipe for this model",
        )
    tower: Any = model.get_submodule(family.vision_tower_path)
    student = build_vision_student(operation["student"], operation["config"], tower.config.hidden_size)
    parent, _, name = family.vision_tower_path.rpartition(".")
    setattr(model.get_submodule(parent), name, student.float())
