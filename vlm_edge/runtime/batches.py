"""Parts that all pipelines share: components by name, the tokenizer, and components run in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.image_inputs import image_inputs
from vlm_edge.processing.images import ImageSource, read_images
from vlm_edge.processing.manifest import ImageProcessing, PipelineManifest
from vlm_edge.processing.text import Tokenizer

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
    """Consecutive slices of at most ``size`` rows, as indices. Errors as :func:`batches`."""
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


def require_tokenizer(tokenizer: Tokenizer | None, manifest: PipelineManifest) -> Tokenizer:
    """The tokenizer of a pipeline that reads text.

    Raises:
        VlmEdgeError: the manifest has none.
    """
    if tokenizer is None:
        raise VlmEdgeError(f"manifest.json: text: missing for a {manifest.pipeline} pipeline", "export the model again")
    return tokenizer


def see(vision: Engine, output: str, images: Sequence[ImageSource], spec: ImageProcessing, batch_size: int) -> Array:
    """One output of a vision encoder for images, ``batch_size`` at a time: (images, ...), a row each.

    Raises:
        VlmEdgeError: an image can't be read, as :func:`vlm_edge.processing.images.read_image`.
    """
    parts = [vision.infer(image_inputs(read_images(part, spec), spec))[output] for part in batches(images, batch_size)]
    return joined(parts, vision, output)


def embed(encoder: Engine, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int, cut: bool) -> Array:
    """``text_embeds`` of a text encoder, ``batch_size`` texts at a time: (texts, dim) float32.

    Raises:
        VlmEdgeError: a text has more tokens than the model reads, and ``cut`` does not leave its end out.
    """
    parts = []
    for part in batches(texts, batch_size):
        input_ids, attention_mask = tokenizer.encode(part, cut=cut)
        parts.append(encoder.infer({"input_ids": input_ids, "attention_mask": attention_mask})["text_embeds"])
    return joined(parts, encoder, "text_embeds")


def require_pairs(features: Array, texts: Sequence[str]) -> None:
    """Refuse texts that don't have one row of features each.

    Raises:
        VlmEdgeError: there are more or fewer.
    """
    if len(features) != len(texts):
        raise VlmEdgeError(f"{len(features)} rows of features for {len(texts)} texts", "give one row for each text")


def joined(parts: Sequence[Array], engine: Engine, output: str) -> Array:
    """Parts one below the other; without any, an array of the output's shape with no row."""
    if parts:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    shape = [size if isinstance(size, int) else 0 for size in engine.outputs[output].shape]
    return np.zeros(shape, np.float32)


def softmax(logits: Array) -> NDArray[np.float32]:
    """Probabilities over the last axis, float32."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)
