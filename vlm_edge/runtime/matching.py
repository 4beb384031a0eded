"""Image-text matching (BLIP, BridgeTower): vision_encoder -> fusion, which judges an image and a text together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource, preprocess, read_images
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import TextEncoder
from vlm_edge.runtime.batches import batches, joined, require, require_text, slices, softmax


class MatchingPipeline:
    """Tells how well texts match images: each pair through the fusion, or (BLIP) cheaply by their embeddings."""

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], text: TextEncoder | None) -> None:
        self.manifest = manifest
        self._vision = require(engines, manifest, "vision_encoder", "image_features")
        self._fusion = require(engines, manifest, "fusion", "logits")
        self._text = require_text(text, manifest)
        self._text_encoder = engines.get("text_encoder")

    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> what the fusion reads of each: features (images, ..., hidden) float32."""
        parts = [
            self._vision.infer(
                {"pixel_values": preprocess(read_images(part, self.manifest.image), self.manifest.image)}
            )
            for part in batches(images, batch_size)
        ]
        return joined([part["image_features"] for part in parts], self._vision, "image_features")

    def probabilities(self, features: Array, texts: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Texts, each about its own row of ``features`` -> (texts, 2) float32 in the order of
        ``manifest.labels`` (no match, match), each row summing to 1.

        Raises:
            VlmEdgeError: there is not one row for each text.
        """
        if len(features) != len(texts):
            raise VlmEdgeError(f"{len(features)} rows of features for {len(texts)} texts", "give one row for each text")
        return softmax(self._logits(features, texts, batch_size))

    def match_logits(self, features: Array, texts: Sequence[str], *, batch_size: int = 64) -> Array:
        """One image's ``features`` (1, ..., hidden) with each of the texts -> the logits of "match" (texts,) float32.

        Texts are compared by them: of probabilities, several may round to 1.
        """
        rows = np.broadcast_to(features, (len(texts), *features.shape[1:]))
        return self._logits(rows, texts, batch_size)[:, 1]

    def _logits(self, features: Array, texts: Sequence[str], batch_size: int) -> Array:
        parts = []
        for part in slices(len(texts), batch_size):
            input_ids, attention_mask = self._text.encode(texts[part])
            rows = np.ascontiguousarray(features[part])
            feed = {"input_ids": input_ids, "attention_mask": attention_mask, "image_features": rows}
            parts.append(self._fusion.infer(feed)["logits"])
        return joined(parts, self._fusion, "logits")

    @property
    def has_embeddings(self) -> bool:
        """Whether :meth:`embed_images` and :meth:`embed_texts` can be asked."""
        return self._text_encoder is not None

    def match(self, images: Sequence[ImageSource], texts: Sequence[str]) -> NDArray[np.float32]:
        """Each image with its own text -> the probability that they belong together (pairs,) float32."""
        return self.probabilities(self.encode_images(images), texts)[:, 1]

    def embed_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> (images, dim) float32, each row of length 1.

        Raises:
            VlmEdgeError: the model has no embeddings, only pairs.
        """
        self._embedding_encoder()
        parts = [
            self._vision.infer(
                {"pixel_values": preprocess(read_images(part, self.manifest.image), self.manifest.image)}
            )
            for part in batches(images, batch_size)
        ]
        return joined([part["image_embeds"] for part in parts], self._vision, "image_embeds")

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64, cut: bool = False) -> Array:
        """Texts -> (texts, dim) float32, each row of length 1.

        Args:
            texts: captions.
            batch_size: how many run at once.
            cut: leave out the end of a text that has more tokens than the model reads.

        Raises:
            VlmEdgeError: the model has no embeddings, only pairs, or a text is longer than the model reads.
        """
        encoder = self._embedding_encoder()
        parts = []
        for part in batches(texts, batch_size):
            input_ids, attention_mask = self._text.encode(part, cut=cut)
            parts.append(encoder.infer({"input_ids": input_ids, "attention_mask": attention_mask})["text_embeds"])
        return joined(parts, encoder, "text_embeds")

    def query(
        self, image: ImageSource, text: str, labels: Sequence[str], prompts: Sequence[str]
    ) -> NDArray[np.float32]:
        """One query of a task, end to end: :meth:`match`."""
        return self.match([image], [text])

    def rehearse(
        self, images: Sequence[ImageSource], texts: Sequence[str], *, max_new_tokens: int | None = None
    ) -> None:
        """Run every component on a batch: one text an image."""
        self.probabilities(self.encode_images(images, batch_size=max(1, len(images))), texts)
        if self._text_encoder is not None:
            self.embed_texts(texts)

    def _embedding_encoder(self) -> Engine:
        if self._text_encoder is None:
            raise VlmEdgeError(
                f"{self.manifest.family}: this model scores pairs of an image and a text; neither has an embedding",
                "use match, or a dual encoder",
            )
        return self._text_encoder
