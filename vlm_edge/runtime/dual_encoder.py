"""Dual encoders (CLIP): image and text embeddings, zero-shot classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.batches import embed, require, require_tokenizer, see, softmax
from vlm_edge.runtime.capabilities import Batch, Capability


class DualEncoderPipeline:
    """Embeds images and texts into one space; both embeddings have length 1, so a dot product is their cosine."""

    capabilities: frozenset[Capability] = frozenset({"embeds", "classifies"})

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], tokenizer: Tokenizer | None) -> None:
        self.manifest = manifest
        self._vision = require(engines, manifest, "vision_encoder", "image_embeds")
        self._text_encoder = require(engines, manifest, "text_encoder", "text_embeds")
        self.tokenizer = require_tokenizer(tokenizer, manifest)
        self._label_embeddings = lru_cache(maxsize=8)(self._embed_labels)

    def embed_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> (images, dim) float32, each row of length 1."""
        return see(self._vision, "image_embeds", images, self.manifest.image, batch_size)

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64, cut: bool = False) -> Array:
        """Texts -> (texts, dim) float32, each row of length 1.

        Args:
            texts: captions or labels.
            batch_size: how many run at once.
            cut: leave out the end of a text that has more tokens than the model reads, as such models are trained.

        Raises:
            VlmEdgeError: a text is longer than the model reads.
        """
        return embed(self._text_encoder, self.tokenizer, texts, batch_size, cut)

    def dry_run(self, batch: Batch) -> None:
        """Run both components on a batch; nothing is generated."""
        self.embed_images(batch.images, batch_size=len(batch))
        self.embed_texts(batch.texts, batch_size=len(batch))

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
