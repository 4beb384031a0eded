"""Vision towers on their own (DINOv2, MobileViT): image embeddings, and classes where the model has a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource, preprocess, read_images
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import TextEncoder
from vlm_edge.runtime.batches import batches, joined, require, softmax


class EmbeddingPipeline:
    """Embeds images; reads no text."""

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], text: TextEncoder | None) -> None:
        self.manifest = manifest
        self._vision = require(engines, manifest, "vision_encoder")

    def embed_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> (images, dim) float32: the model's pooled output, not normalised."""
        return self._outputs(images, batch_size, "image_embeds")

    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> features of every token or patch (images, tokens, hidden) float32."""
        return self._outputs(images, batch_size, "image_features")

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
        return softmax(self._outputs(images, batch_size, "logits"))

    def query(self, image: ImageSource, text: str, labels: Sequence[str], prompts: Sequence[str]) -> Array:
        """One query of a task, end to end: the classes' probabilities, or the embedding where there are none."""
        return self.classify([image]) if self.manifest.labels else self.embed_images([image])

    def rehearse(
        self, images: Sequence[ImageSource], texts: Sequence[str], *, max_new_tokens: int | None = None
    ) -> None:
        """Run the component on a batch."""
        self.embed_images(images, batch_size=max(1, len(images)))

    def _outputs(self, images: Sequence[ImageSource], batch_size: int, output: str) -> Array:
        parts = [
            self._vision.infer(
                {"pixel_values": preprocess(read_images(part, self.manifest.image), self.manifest.image)}
            )[output]
            for part in batches(images, batch_size)
        ]
        return joined(parts, self._vision, output)
