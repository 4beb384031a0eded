"""Checks of an engine's options, of its file against the manifest, and of its feeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from vlm_edge.backends.base import Feed
from vlm_edge.checked import first_fault
from vlm_edge.errors import VlmEdgeError
from vlm_edge.names import near
from vlm_edge.processing.manifest import Component, TensorSpec

Option = str | int | float | bool


class EngineOptions(BaseModel):
    """Options of an engine in a manifest. Unknown ones are refused: some write files, or load code."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Options = TypeVar("Options", bound=EngineOptions)


def read_options(engine: str, kind: type[Options], given: Mapping[str, Option]) -> Options:
    """The options, validated.

    Raises:
        VlmEdgeError: one is unknown or out of bounds.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        raise VlmEdgeError(
            f"{engine} option {first_fault(error, kind)}",
            f"options: {', '.join(kind.model_fields)}" if kind.model_fields else f"{engine} takes none",
        ) from error


Tensor = tuple[str | None, Sequence[object] | None]
"""A dtype and a shape, whose dynamic sizes are not integers; None where the file doesn't tell."""
_OTHER_FILE = "the manifest belongs to another file: export or compile it again"


def check_signature(path: Path, component: Component, inputs: Mapping[str, Tensor], outputs: Collection[str]) -> None:
    """Hold a file's inputs and outputs to the component's row in the manifest.

    Args:
        path: the file, for the message.
        component: the row.
        inputs: the file's inputs by name.
        outputs: the names of the file's outputs.

    Raises:
        VlmEdgeError: they differ; the message names the first difference.
    """
    if missing := [name for name in component.outputs if name not in outputs]:
        raise VlmEdgeError(
            f"{path}: no output {missing[0]!r}, which the manifest names; it has {', '.join(outputs)}", _OTHER_FILE
        )
    if other := set(component.inputs) ^ set(inputs):
        raise VlmEdgeError(f"{path}: input {min(other)!r} is the manifest's or the file's alone", _OTHER_FILE)
    for name, (dtype, shape) in inputs.items():
        spec = component.inputs[name]
        fits = dtype in (None, spec.dtype) and (shape is None or len(shape) == len(spec.shape))
        pairs = zip(spec.shape, shape or (), strict=False)
        if not fits or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
            raise VlmEdgeError(
                f"{path}: input {name!r} is {dtype} {list(shape or ())}, in the manifest {spec.dtype} "
                f"{list(spec.shape)}",
                _OTHER_FILE,
            )


Signature = tuple[tuple[str, Any, tuple[int, ...]], ...]


class FeedChecker:
    """Checks each new signature (names, dtypes, shapes) once; a signature seen before costs one set look-up."""

    def __init__(self, inputs: Mapping[str, TensorSpec], where: str) -> None:
        self._inputs = inputs
        self._where = where
        self._seen: set[Signature] = set()

    def check(self, feed: Feed) -> Signature:
        """The feed's signature.

        Raises:
            VlmEdgeError: as :func:`check_feed`.
        """
        try:
            signature = tuple((name, array.dtype, array.shape) for name, array in feed.items())
        except AttributeError:
            signature = ()
        if signature not in self._seen:
            check_feed(feed, self._inputs, self._where)
            self._seen.add(signature)
        return signature


def check_feed(feed: Feed, inputs: Mapping[str, TensorSpec], where: str) -> None:
    """Raise for the first input that is missing, unknown, no array, or of a wrong dtype or shape.

    A symbolic dimension may have any size, and the same size wherever its name stands.

    Raises:
        VlmEdgeError: names ``where``, the input, what was expected and what was given.
    """
    for name in feed:
        if name not in inputs:
            raise VlmEdgeError(f"{where}: no input is called {name!r}", near(name, inputs))
    sizes: dict[str, tuple[int, str]] = {}
    for name, spec in inputs.items():
        if name not in feed:
            raise VlmEdgeError(f"{where}: input {name!r} is missing", f"give {spec.dtype} {list(spec.shape)}")
        array = feed[name]
        if not isinstance(array, np.ndarray):
            raise VlmEdgeError(f"{where}: input {name!r} is a {type(array).__name__}, not a numpy array")
        wanted = f"expected {spec.dtype} {list(spec.shape)}, given {array.dtype} {list(array.shape)}"
        if str(array.dtype) != spec.dtype or array.ndim != len(spec.shape):
            raise VlmEdgeError(f"{where}: input {name!r}: {wanted}")
        for size, dim in zip(array.shape, spec.shape, strict=True):
            if isinstance(dim, int):
                if size != dim:
                    raise VlmEdgeError(f"{where}: input {name!r}: {wanted}")
            elif sizes.setdefault(dim, (size, name))[0] != size:
                first, owner = sizes[dim]
                raise VlmEdgeError(f"{where}: input {name!r}: {wanted}, but {dim} is {first} in {owner!r}")
