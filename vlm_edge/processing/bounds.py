"""Kinds of fields of the manifest, each with its bounds: a manifest may come from anywhere."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_NEW_TOKENS = 32768
"""The longest answer: minutes on a device."""
MOST_TOKENS = 1 << 24
"""Of any text that a model reads."""
MOST_PIXELS = 1 << 24
"""The largest image that a model reads: 192 MiB as float32. Qwen2-VL reads up to 12.8 million pixels."""
MOST_TILES = 1024
MOST_ELEMENTS = 1 << 28
"""Of the fixed sizes of one tensor."""


class Frozen(BaseModel):
    """Unknown keys are refused, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def relative_name(name: str) -> str:
    """A file's name inside its folder, POSIX style.

    Raises:
        ValueError: it is absolute, leads out of the folder, or holds what a file system reads as more than a name.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        raise ValueError("no plain relative name of a file inside the folder")
    if any(character in '\\:*?"<>|' or ord(character) < 32 or 127 <= ord(character) < 160 for character in name):
        raise ValueError("a character that no file of a model has in its name")
    return name


def asked_at_most_twice(template: str) -> str:
    """A text into which a question is put, so that it can't make a long text of a short one.

    Raises:
        ValueError: the question stands in it more often.
    """
    if template.count("{question}") > 2 or template.count("{input}") > 2:
        raise ValueError("holds the question more than twice")
    return template


FileName = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(relative_name)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Piece = Annotated[str, Field(max_length=1024)]
Layout = Annotated[str, Field(max_length=65536)]
Template = Annotated[Layout, AfterValidator(asked_at_most_twice)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

Side = Annotated[int, Field(ge=1, le=16384)]
Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Positive = Annotated[float, Field(ge=1e-8, le=1e8)]
Shift = Annotated[float, Field(ge=-1e8, le=1e8)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Tokens = Annotated[tuple[Token, ...], Field(max_length=1 << 20)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Options = Annotated[
    dict[Name, Annotated[str, Field(max_length=64)] | int | float | bool],
    Field(max_length=16),
]
"""An engine's own; each engine has the closed list of them."""
