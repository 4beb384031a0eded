"""What all pipelines share: components by name, the tokenizer, and rows in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import TextEncoder

Row = TypeVar("Row")


def batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Consecutive slices of at most ``size`` rows.

    Raises:
        VlmEdgeError: ``size`` is less than 1.
    """
    if size < 1:
        raise VlmEdgeError(f"batch_size: {size}; a batch has at least 1 row", "leave batch_size out, or give 1 or more")
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def slices(rows: int, size: int) -> Iterator[slice]:
    """The places of consecutive batches of at most ``size`` rows. Errors as :func:`batches`."""
    return (slice(part[0], part[-1] + 1) for part in batches(range(rows), size))


def require(engines: Mapping[str, Engine], manifest: PipelineManifest, name: str, *outputs: str) -> Engine:
    """The engine of one component, which has these outputs.

    Raises:
        VlmEdgeError: the manifest has no such component, or an output is missing.
    """
    if name not in engines:
        raise VlmEdgeError(
            f"a {manifest.pipeline} pipeline needs the component {name!r}; the manifest has {', '.join(engines)}",
            "export the model again",
        )
    if missing := [output for output in outputs if output not in engines[name].outputs]:
        raise VlmEdgeError(
            f"manifest.json: components.{name}.outputs: a {manifest.pipeline} pipeline needs {missing[0]!r}",
            "export the model again",
        )
    return engines[name]


def require_text(text: TextEncoder | None, manifest: PipelineManifest) -> TextEncoder:
    """The tokenizer of a pipeline that reads text.

    Raises:
        VlmEdgeError: the manifest has none.
    """
    if text is None:
        raise VlmEdgeError(f"manifest.json: text: missing for a {manifest.pipeline} pipeline", "export the model again")
    return text


def joined(parts: Sequence[Array], engine: Engine, output: str) -> Array:
    """All parts below each other; no part gives no row, of the output's shape."""
    if parts:
        return np.concatenate(parts)
    shape = [size if isinstance(size, int) else 0 for size in engine.outputs[output].shape]
    return np.zeros(shape, np.float32)


def softmax(logits: Array) -> NDArray[np.float32]:
    """Probabilities over the last axis, float32."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)
