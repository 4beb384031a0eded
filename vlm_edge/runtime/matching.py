"""Image-text matching (BLIP, BridgeTower): vision_encoder -> fusion, which scores an image and a text together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.batches import embed, joined, require, require_pairs, require_tokenizer, see, slices, softmax
from vlm_edge.runtime.capabilities import Batch, Capability


class MatchingPipeline:
    """Scores how well texts match images: each pair through the fusion, or (BLIP) cheaply by their embeddings."""

    capabilities: frozenset[Capability] = frozenset({"scores", "embeds"})

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], tokenizer: Tokenizer | None) -> None:
        self.manifest = manifest
        self._vision = require(engines, manifest, "vision_encoder", "image_features")
        self._fusion = require(engines, manifest, "fusion", "logits")
        self.tokenizer = require_tokenizer(tokenizer, manifest)
        self._text_encoder = engines.get("text_encoder")
        if self._text_encoder is None:
            self.capabilities = frozenset({"scores"})

    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> features for the fusion (images, ..., hidden) float32."""
        return see(self._vision, "image_features", images, self.manifest.image, batch_size)

    def probabilities(self, features: Array, texts: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Texts, each about its own row of ``features`` -> (texts, 2) float32 in the order of
        ``manifest.labels`` (no match, match), each row summing to 1.

        Raises:
            VlmEdgeError: there is not one row for each text.
        """
        require_pairs(features, texts)
        return softmax(self._logits(features, texts, batch_size))

    def match_logits(self, features: Array, texts: Sequence[str], *, batch_size: int = 64, cut: bool = False) -> Array:
        """One image's ``features`` (1, ..., hidden) with each of the texts -> the logits of "match" (texts,) float32.

        Texts are compared by them: of probabilities, several may round to 1. ``cut`` leaves out the end of a text that
        has more tokens than the model reads.
        """
        rows = np.broadcast_to(features, (len(texts), *features.shape[1:]))
        return self._logits(rows, texts, batch_size, cut)[:, 1]

    def _logits(self, features: Array, texts: Sequence[str], batch_size: int, cut: bool = False) -> Array:
        parts = []
        for part in slices(len(texts), batch_size):
            input_ids, attention_mask = self.tokenizer.encode(texts[part], cut=cut)
            rows = np.ascontiguousarray(features[part])
            feed = {"input_ids": input_ids, "attention_mask": attention_mask, "image_features": rows}
            parts.append(self._fusion.infer(feed)["logits"])
        return joined(parts, self._fusion, "logits")

    def match(self, images: Sequence[ImageSource], texts: Sequence[str]) -> NDArray[np.float32]:
        """Each image with its own text -> the probability that they belong together (pairs,) float32."""
        return self.probabilities(self.encode_images(images), texts)[:, 1]

    def embed_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> (images, dim) float32, each row of length 1.

        Raises:
            VlmEdgeError: the model has no embeddings, only pairs.
        """
        self._embedding_encoder()
        return see(self._vision, "image_embeds", images, self.manifest.image, batch_size)

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64, cut: bool = False) -> Array:
        """Texts -> (texts, dim) float32, each row of length 1.

        Args:
            texts: captions.
            batch_size: how many run at once.
            cut: leave out the end of a text that has more tokens than the model reads.

        Raises:
            VlmEdgeError: the model has no embeddings, only pairs, or a text is longer than the model reads.
        """
        return embed(self._embedding_encoder(), self.tokenizer, texts, batch_size, cut)

    def dry_run(self, batch: Batch) -> None:
        """Run every component on a batch: one text an image."""
        self.probabilities(self.encode_images(batch.images, batch_size=len(batch)), batch.texts)
        if self._text_encoder is not None:
            self.embed_texts(batch.texts)

    def _embedding_encoder(self) -> Engine:
        if self._text_encoder is None:
            raise VlmEdgeError(
                f"{self.manifest.family}: this model scores pairs of an image and a text; neither has an embedding",
                "use match, or a dual encoder",
            )
        return self._text_encoder
