"""What all pipelines share: components by name, the tokenizer, and rows in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vlm_edge.engines.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import TextEncoder

Row = TypeVar("Row")


def batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Consecutive slices of at most ``size`` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def require(engines: Mapping[str, Engine], manifest: PipelineManifest, name: str) -> Engine:
    """The engine of one component.

    Raises:
        VlmEdgeError: the manifest has no such component.
    """
    if name not in engines:
        raise VlmEdgeError(
            f"a {manifest.pipeline} pipeline needs the component {name!r}; the manifest has {', '.join(engines)}",
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
