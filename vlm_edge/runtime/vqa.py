"""Visual question answering: vision_encoder -> text_encoder -> decoder, greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.batches import require, require_pairs, require_tokenizer, see, slices
from vlm_edge.runtime.capabilities import Batch, Capability
from vlm_edge.runtime.greedy import GreedyDecoder


class VqaPipeline:
    """Answers questions about images. :meth:`answer` is the path whose latency is measured."""

    capabilities: frozenset[Capability] = frozenset({"answers"})

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], tokenizer: Tokenizer | None) -> None:
        if manifest.generation is None:
            raise VlmEdgeError("manifest.json: generation: missing for a vqa pipeline", "export the model again")
        self.manifest = manifest
        self._vision = require(engines, manifest, "vision_encoder", "image_features")
        self._text_encoder = require(engines, manifest, "text_encoder")
        self._decoder = GreedyDecoder(require(engines, manifest, "decoder"), manifest.generation)
        self.tokenizer = require_tokenizer(tokenizer, manifest)

    def answer(self, image: ImageSource, question: str, *, max_new_tokens: int | None = None) -> str:
        """One question about one image (a path, bytes, a PIL image, or RGB uint8 (height, width, 3)).

        Args:
            max_new_tokens: the longest answer; default: the manifest's.

        Raises:
            VlmEdgeError: the image can't be read, as :func:`vlm_edge.processing.images.read_image`, or the question
                has more tokens than the model reads.
        """
        return self.answer_batch(self.encode_images([image]), [question], max_new_tokens=max_new_tokens)[0]

    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> features (images, tokens, hidden) float32, ``batch_size`` at a time."""
        return see(self._vision, "image_features", images, self.manifest.image, batch_size)

    def dry_run(self, batch: Batch) -> None:
        """Run every component on a batch: one question an image."""
        features = self.encode_images(batch.images, batch_size=len(batch))
        self.answer_ids(features, batch.texts, batch_size=len(batch), max_new_tokens=batch.max_new_tokens)

    def answer_batch(
        self, features: Array, questions: Sequence[str], *, batch_size: int = 64, max_new_tokens: int | None = None
    ) -> list[str]:
        """The texts of :meth:`answer_ids`."""
        rows = self.answer_ids(features, questions, batch_size=batch_size, max_new_tokens=max_new_tokens)
        return [self.decode(row) for row in rows]

    def answer_ids(
        self, features: Array, questions: Sequence[str], *, batch_size: int = 64, max_new_tokens: int | None = None
    ) -> list[list[int]]:
        """Questions, each about its own row of ``features`` (questions, tokens, hidden) -> the ids of each answer,
        without the end token.

        Questions of different lengths are padded and masked. A graph with dynamic quantization takes its activation
        ranges over the whole batch; for every other graph the answers don't depend on ``batch_size``.
        """
        require_pairs(features, questions)
        answers: list[list[int]] = []
        for part in slices(len(questions), batch_size):
            input_ids, attention_mask = self.tokenizer.encode(questions[part])
            asked = {"input_ids": input_ids, "attention_mask": attention_mask, "image_features": features[part]}
            cross = self._text_encoder.infer(asked)
            answers += self._decoder.decode(
                cross, len(input_ids), attention_mask=attention_mask, max_new_tokens=max_new_tokens
            )
        return answers

    def decode(self, ids: Sequence[int]) -> str:
        """Ids of an answer -> its text."""
        return self.tokenizer.decode(ids)
