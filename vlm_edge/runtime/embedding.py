"""Vision towers on their own (DINOv2, MobileViT): image embeddings, and classes where the model has a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.batches import require, see, softmax
from vlm_edge.runtime.capabilities import Batch, Capability


class EmbeddingPipeline:
    """Embeds images; reads no text."""

    capabilities: frozenset[Capability] = frozenset({"classifies"})

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], tokenizer: Tokenizer | None) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self._vision = require(engines, manifest, "vision_encoder")

    def embed_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> (images, dim) float32: the model's pooled output, not normalised."""
        return see(self._vision, "image_embeds", images, self.manifest.image, batch_size)

    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> features of every token or patch (images, tokens, hidden) float32."""
        return see(self._vision, "image_features", images, self.manifest.image, batch_size)

    def classify(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> NDArray[np.float32]:
        """Images -> probabilities (images, labels) float32 in the order of ``manifest.labels``.

        Raises:
            VlmEdgeError: the model has no classification head.
        """
        if self.manifest.labels is None:
            raise VlmEdgeError(
                f"{self.manifest.family}: this model has no classes: it embeds images",
                "use embed_images, or export a checkpoint with a classification head",
            )
        return softmax(see(self._vision, "logits", images, self.manifest.image, batch_size))

    def dry_run(self, batch: Batch) -> None:
        """Run the component on a batch of images; its texts are not read."""
        self.embed_images(batch.images, batch_size=len(batch))
