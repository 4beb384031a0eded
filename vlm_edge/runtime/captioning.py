"""Text from an image alone (captioning, OCR): vision_encoder -> decoder, greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vlm_edge.backends.base import Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource, preprocess, read_images
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.batches import batches, require, require_tokenizer
from vlm_edge.runtime.capabilities import Batch, Capability
from vlm_edge.runtime.greedy import GreedyDecoder


class CaptioningPipeline:
    """Writes text about images. The vision encoder gives the keys and values of the decoder's cross-attention."""

    capabilities: frozenset[Capability] = frozenset({"captions"})

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], tokenizer: Tokenizer | None) -> None:
        if manifest.generation is None:
            raise VlmEdgeError(
                f"manifest.json: generation: missing for a {manifest.pipeline} pipeline", "export the model again"
            )
        self.manifest = manifest
        self._generation = manifest.generation
        self._vision = require(engines, manifest, "vision_encoder")
        self._decoder = GreedyDecoder(require(engines, manifest, "decoder"), manifest.generation)
        self.tokenizer = require_tokenizer(tokenizer, manifest)

    def caption(self, image: ImageSource, prompt: str = "", *, max_new_tokens: int | None = None) -> str:
        """The text of one image (a path, bytes, a PIL image, or RGB uint8 (height, width, 3)).

        Args:
            prompt: how the text begins; the answer goes on from there and leaves it out.
            max_new_tokens: the longest text; default: the manifest's.

        Raises:
            VlmEdgeError: the image can't be read, as :func:`vlm_edge.processing.images.read_image`.
        """
        return self.caption_batch([image], prompt, max_new_tokens=max_new_tokens)[0]

    def caption_batch(
        self,
        images: Sequence[ImageSource],
        prompt: str = "",
        *,
        batch_size: int = 16,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """As :meth:`caption`, for many images that share a prompt, ``batch_size`` at a time."""
        rows = self.caption_ids(images, prompt, batch_size=batch_size, max_new_tokens=max_new_tokens)
        return [self.decode(row) for row in rows]

    def caption_ids(
        self,
        images: Sequence[ImageSource],
        prompt: str = "",
        *,
        batch_size: int = 16,
        max_new_tokens: int | None = None,
    ) -> list[list[int]]:
        """As :meth:`caption_batch`: the ids of each text, without the prompt and the end token."""
        captions: list[list[int]] = []
        for part in batches(images, batch_size):
            pixel_values = preprocess(read_images(part, self.manifest.image), self.manifest.image)
            cross = self._vision.infer({"pixel_values": pixel_values})
            start = np.full((len(part), 1), self._generation.start_token_id, np.int64)
            if prompt:
                prompt_ids, _ = self.tokenizer.encode([prompt], special_tokens=False)
                start = np.concatenate([start, prompt_ids.repeat(len(part), axis=0)], axis=1)
            captions += self._decoder.decode(cross, len(part), prompt=start, max_new_tokens=max_new_tokens)
        return captions

    def decode(self, ids: Sequence[int]) -> str:
        """Ids of a text -> the text."""
        return self.tokenizer.decode(ids)

    def dry_run(self, batch: Batch) -> None:
        """Run both components on a batch of images; its texts are not read."""
        self.caption_ids(batch.images, batch_size=len(batch), max_new_tokens=batch.max_new_tokens)
