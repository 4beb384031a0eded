"""Dual encoders (CLIP): image and text embeddings, zero-shot classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.image_inputs import image_inputs
from vlm_edge.processing.images import ImageSource, read_images
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import TextEncoder
from vlm_edge.runtime.batches import batches, joined, require, require_text, softmax


class DualEncoderPipeline:
    """Embeds images and texts into one space; both embeddings have length 1, so a dot product is their cosine."""

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], text: TextEncoder | None) -> None:
        self.manifest = manifest
        self._vision = require(engines, manifest, "vision_encoder", "image_embeds")
        self._text_encoder = require(engines, manifest, "text_encoder", "text_embeds")
        self._text = require_text(text, manifest)
        self._label_embeddings = lru_cache(maxsize=8)(self._embed_labels)

    def embed_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> (images, dim) float32, each row of length 1."""
        parts = [
            self._vision.infer(image_inputs(read_images(part, self.manifest.image), self.manifest.image))
            for part in batches(images, batch_size)
        ]
        return joined([part["image_embeds"] for part in parts], self._vision, "image_embeds")

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64, cut: bool = False) -> Array:
        """Texts -> (texts, dim) float32, each row of length 1.

        Args:
            texts: captions or labels.
            batch_size: how many run at once.
            cut: leave out the end of a text that has more tokens than the model reads, as such models are trained.

        Raises:
            VlmEdgeError: a text is longer than the model reads.
        """
        parts = []
        for part in batches(texts, batch_size):
            input_ids, attention_mask = self._text.encode(part, cut=cut)
            parts.append(self._text_encoder.infer({"input_ids": input_ids, "attention_mask": attention_mask}))
        return joined([part["text_embeds"] for part in parts], self._text_encoder, "text_embeds")

    def query(
        self, image: ImageSource, text: str, labels: Sequence[str], prompts: Sequence[str]
    ) -> NDArray[np.float32]:
        """One query of a task, end to end: :meth:`classify`, or without labels the cosine (1, 1) of image and text."""
        if not labels:
            return np.asarray(self.embed_images([image]) @ self.embed_texts([text]).T, np.float32)
        return self.classify([image], tuple(labels), tuple(prompts) or ("{}",))

    def rehearse(
        self, images: Sequence[ImageSource], texts: Sequence[str], *, max_new_tokens: int | None = None
    ) -> None:
        """Run both components on a batch; nothing is generated, so ``max_new_tokens`` is left alone."""
        self.embed_images(images, batch_size=max(1, len(images)))
        self.embed_texts(texts, batch_size=max(1, len(texts)))

    def label_embeddings(self, labels: Sequence[str], prompts: Sequence[str] = ("{}",)) -> Array:
        """Labels -> (labels, dim) float32: the mean over ``prompts`` of the embedded texts, brought back to length 1.

        Prompt ensembling in embedding space, Radford et al. 2021 (arXiv:2103.00020), section 3.1.4. Computed once for
        each set of labels and prompts.

        Raises:
            VlmEdgeError: there is no label or no prompt, or a prompt has no ``{}``.
        """
        if not labels or not prompts:
            raise VlmEdgeError(f"{len(labels)} labels and {len(prompts)} prompts", "give at least one of each")
        if plain := [prompt for prompt in prompts if "{}" not in prompt]:
            raise VlmEdgeError(f"prompt {plain[0]!r} has no {{}} for the label", "write it as 'a photo of a {}'")
        return self._label_embeddings(tuple(labels), tuple(prompts))

    def classify(
        self, images: Sequence[ImageSource], labels: Sequence[str], prompts: Sequence[str] = ("{}",)
    ) -> NDArray[np.float32]:
        """Images -> probabilities (images, labels) float32: softmax of ``logit_scale`` times the cosines.

        With a ``logit_bias`` (SigLIP) every label is judged for itself: sigmoid(logit_scale x cosine + logit_bias),
        and a row need not sum to 1.

        Raises:
            VlmEdgeError: as :meth:`label_embeddings`, or an image can't be read.
        """
        text_embeds = self.label_embeddings(labels, prompts)
        logits = (self.manifest.logit_scale or 1.0) * (self.embed_images(images) @ text_embeds.T)
        if self.manifest.logit_bias is None:
            return softmax(logits)
        return np.asarray(1 / (1 + np.exp(-(logits + self.manifest.logit_bias))), np.float32)

    def _embed_labels(self, labels: tuple[str, ...], prompts: tuple[str, ...]) -> Array:
        texts = [prompt.replace("{}", label) for label in labels for prompt in prompts]
        mean = self.embed_texts(texts).reshape(len(labels), len(prompts), -1).mean(axis=1)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)
