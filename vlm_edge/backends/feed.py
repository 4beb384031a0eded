"""What a feed has to be: every input of a component, by name, of its dtype and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_edge.backends.base import Feed
from vlm_edge.errors import VlmEdgeError
from vlm_edge.names import near
from vlm_edge.processing.manifest import TensorSpec

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
