"""Models of what people write in files (recipes, targets, manifests), and pydantic's faults in their words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from vlm_edge.errors import short, shown
from vlm_edge.names import near

MAX_FAULTS = 20
"""Faults of one file that are listed; of the others, how many there are."""

MAX_TEXT = 10_000
"""Characters of a text."""


class CheckedModel(BaseModel):
    """Base of what is read from a file: frozen, unknown keys forbidden, numbers finite, and nothing converted.

    A list where a tuple is meant, or a text where a path is, has to be allowed with ``Annotated[..., Strict(False)]``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, str_max_length=MAX_TEXT)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` for a Literal of numbers, which Python takes for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and any(get_origin(each) is Literal for each in (annotation, *get_args(annotation))):
            raise ValueError("give one of the values that the setting has")
        return value


def faults_of(error: ValidationError, model: type[BaseModel] | None = None) -> list[tuple[str, str]]:
    """(place, message) of every fault that ``model`` found in its input, the first :data:`MAX_FAULTS` of them.

    A place is what a reader would write: ``cross_attention.heads``, ``keep_float[2]``, or empty for the whole. Without
    ``model`` an unknown key's message lists no keys that are near.
    """
    found = error.errors(include_url=False, include_context=False)
    faults = [(place_of(fault["loc"]), _message(fault, model)) for fault in found[:MAX_FAULTS]]
    return [*faults, *([("", f"and {len(found) - MAX_FAULTS:,} more")] if len(found) > MAX_FAULTS else [])]


def first_fault(error: ValidationError, model: type[BaseModel] | None = None, *, within: str = "") -> str:
    """The first fault behind its place, which lies in ``within``: ``components.decoder.file: missing``."""
    place, message = faults_of(error, model)[0]
    return ": ".join(part for part in (place_in(within, place), message) if part)


def place_of(location: Sequence[str | int]) -> str:
    """``("a", 2, "b")`` -> ``a[2].b``."""
    place = ""
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part != "[key]":  # pydantic's mark of a mapping's key that is at fault, after the key itself
            place += f".{short(part)}" if place else short(part)
    return place


def place_in(*places: str) -> str:
    """Places from the outermost in: ``stages[1]``, ``prune``, ``heads`` -> ``stages[1].prune.heads``."""
    return ".".join(place for place in places if place)


def _message(fault: Mapping[str, Any], model: type[BaseModel] | None) -> str:
    kind, value = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        keys = _keys(model, fault["loc"][:-1]) if model is not None else []
        return f"unknown key; {near(str(fault['loc'][-1]), keys)}" if keys else "unknown key"
    if kind == "missing":
        return "missing"
    if kind in ("model_type", "dict_type"):
        return f"give a mapping (got {shown(value)})"
    if kind in ("tuple_type", "list_type"):
        return f"give a list (got {shown(value)})"
    message = str(fault["msg"]).removeprefix("Value error, ")
    whole = kind == "json_invalid" or (kind == "value_error" and isinstance(value, Mapping))
    quoted = "" if whole else f" (got {shown(value)})"
    return f"{message[0].lower()}{message[1:]}{quoted}"


def _keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys that the mapping at ``location`` may have."""
    annotation: Any = model
    for part in location:
        annotation = _below(annotation, part)
    owner = _model_in(annotation)
    return [field.alias or name for name, field in owner.model_fields.items()] if owner else []


def _below(annotation: Any, part: str | int) -> Any:
    """The annotation of what ``part`` names in a value of ``annotation``: a field, or an item of a mapping or list."""
    owner = _model_in(annotation)
    if owner is not None:
        fields = owner.model_fields.items()
        return next((field.annotation for name, field in fields if part in (name, field.alias)), None)
    for each in (annotation, *get_args(annotation)):
        if get_origin(each) in (dict, list, tuple):
            return get_args(each)[1 if get_origin(each) is dict else 0]
    return None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of an annotation such as ``Model`` or ``Model | None``."""
    if get_origin(annotation) in (dict, list, tuple):
        return None
    candidates = (annotation, *get_args(annotation))
    return next((each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _timestamp(text: str) -> str:
    try:
        zone = datetime.fromisoformat(text).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise ValueError(f"{text[:40]!r} is no ISO 8601 time with its zone, such as 2026-11-30T12:00:00+00:00")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number in it is not finite")
    if isinstance(value, dict):
        for each in value.values():
            _finite(each)
    elif isinstance(value, list):
        for each in value:
            _finite(each)
    return value


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 in hexadecimal: what names a folder of the store, and can name nothing else."""

Timestamp = Annotated[str, AfterValidator(_timestamp)]
"""ISO 8601 with a zone."""

JsonObject = Annotated[dict[str, Any], AfterValidator(_finite)]
"""A mapping of JSON values without NaN and infinity, which JSON has no words for."""
