"""Visual question answering: vision_encoder -> text_encoder -> decoder, greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource, preprocess, read_images
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import TextEncoder
from vlm_edge.runtime.batches import batches, joined, require, require_text, slices
from vlm_edge.runtime.greedy import GreedyDecoder


class VqaPipeline:
    """Answers questions about images. :meth:`answer` is the path whose latency is measured."""

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], text: TextEncoder | None) -> None:
        if manifest.generation is None:
            raise VlmEdgeError("manifest.json: generation: missing for a vqa pipeline", "export the model again")
        self.manifest = manifest
        self._generation = manifest.generation
        self._vision = require(engines, manifest, "vision_encoder", "image_features")
        self._text_encoder = require(engines, manifest, "text_encoder")
        self._decoder = GreedyDecoder(require(engines, manifest, "decoder"), manifest.generation)
        self._text = require_text(text, manifest)

    def answer(self, image: ImageSource, question: str, *, max_new_tokens: int | None = None) -> str:
        """One question about one image (a path, bytes, a PIL image, or RGB uint8 (height, width, 3)).

        Args:
            max_new_tokens: the longest answer; default: the manifest's.

        Raises:
            VlmEdgeError: the image can't be read, as :func:`vlm_edge.processing.images.read_image`, or the question
                has more tokens than the model reads.
        """
        pixel_values = preprocess(read_images([image], self.manifest.image), self.manifest.image)
        features = self._vision.infer({"pixel_values": pixel_values})["image_features"]
        return self.decode(self._answer_ids(features, [question], max_new_tokens)[0])

    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> features (images, tokens, hidden) float32, ``batch_size`` at a time."""
        parts = [
            self._vision.infer(
                {"pixel_values": preprocess(read_images(part, self.manifest.image), self.manifest.image)}
            )
            for part in batches(images, batch_size)
        ]
        return joined([part["image_features"] for part in parts], self._vision, "image_features")

    def query(self, image: ImageSource, text: str, labels: Sequence[str], prompts: Sequence[str]) -> str:
        """One query of a task, end to end: :meth:`answer`."""
        return self.answer(image, text)

    def rehearse(
        self, images: Sequence[ImageSource], texts: Sequence[str], *, max_new_tokens: int | None = None
    ) -> None:
        """Run every component on a batch: one question an image."""
        features = self.encode_images(images, batch_size=max(1, len(images)))
        self.answer_batch(features, texts, batch_size=max(1, len(texts)), max_new_tokens=max_new_tokens)

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
        if len(features) != len(questions):
            raise VlmEdgeError(
                f"answer_batch: {len(features)} rows of features for {len(questions)} questions",
                "give one row for each question",
            )
        answers: list[list[int]] = []
        for part in slices(len(questions), batch_size):
            answers += self._answer_ids(features[part], questions[part], max_new_tokens)
        return answers

    def decode(self, ids: Sequence[int]) -> str:
        """Ids of an answer -> its text."""
        return self._text.decode(ids)

    def _answer_ids(self, features: Array, questions: Sequence[str], max_new_tokens: int | None) -> list[list[int]]:
        input_ids, attention_mask = self._text.encode(questions)
        cross = self._text_encoder.infer(
            {"input_ids": input_ids, "attention_mask": attention_mask, "image_features": features}
        )
        return self._decoder.decode(cross, len(questions), attention_mask=attention_mask, max_new_tokens=max_new_tokens)
