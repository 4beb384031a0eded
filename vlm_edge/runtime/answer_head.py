"""Visual question answering by classification (ViLT): fusion scores every answer of a list; nothing is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource, read_images
from vlm_edge.processing.manifest import PatchRows, PipelineManifest
from vlm_edge.processing.patch_rows import row_picture, stacked
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.batches import joined, require, require_pairs, require_tokenizer, slices
from vlm_edge.runtime.capabilities import Batch, Capability

Pictures = NDArray[np.object_]
"""One :class:`vlm_edge.processing.picture.Picture` an entry: images may differ in how many patches they become."""


class AnswerHeadPipeline:
    """Answers questions about images from ``manifest.labels``. :meth:`answer` is the path whose latency is measured."""

    capabilities: frozenset[Capability] = frozenset({"answers"})

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], tokenizer: Tokenizer | None) -> None:
        if not manifest.labels or not isinstance(manifest.image.tiles, PatchRows):
            raise VlmEdgeError(
                "manifest.json: labels or image.tiles: missing for an answer_head pipeline", "export the model again"
            )
        self.manifest = manifest
        self._answers = manifest.labels
        self._rows = manifest.image.tiles
        self._fusion = require(engines, manifest, "fusion", "logits")
        self.tokenizer = require_tokenizer(tokenizer, manifest)

    def answer(self, image: ImageSource, question: str) -> str:
        """One question about one image (a path, bytes, a PIL image, or RGB uint8 (height, width, 3)).

        Raises:
            VlmEdgeError: the image can't be read, as :func:`vlm_edge.processing.images.read_image`.
        """
        return self.answer_batch(self.encode_images([image]), [question])[0]

    def encode_images(self, images: Sequence[ImageSource]) -> Pictures:
        """Images -> their patches; the fusion reads them with a question."""
        pictures = np.empty(len(images), np.object_)
        pictures[:] = [
            row_picture(image, self.manifest.image, self._rows) for image in read_images(images, self.manifest.image)
        ]
        return pictures

    def answer_batch(self, pictures: Pictures, questions: Sequence[str], *, batch_size: int = 16) -> list[str]:
        """As :meth:`answer_ids`, in words."""
        return [self.decode(row) for row in self.answer_ids(pictures, questions, batch_size=batch_size)]

    def answer_ids(self, pictures: Pictures, questions: Sequence[str], *, batch_size: int = 16) -> list[list[int]]:
        """Questions, each about its own entry of ``pictures`` -> the place of the likeliest answer in
        ``manifest.labels``, a list of one each, as other pipelines give an answer's tokens."""
        best: list[int] = self.logits(pictures, questions, batch_size=batch_size).argmax(axis=1).tolist()
        return [[place] for place in best]

    def decode(self, ids: Sequence[int]) -> str:
        """A row of :meth:`answer_ids` -> the answer."""
        return " ".join(self._answers[place] for place in ids)

    def scores(self, pictures: Pictures, questions: Sequence[str], *, batch_size: int = 16) -> NDArray[np.float32]:
        """(questions, answers) float32 in 0..1, each answer scored for itself: the sigmoid of its logit, since such
        heads are trained with binary cross-entropy. A row need not sum to 1."""
        return np.asarray(0.5 + 0.5 * np.tanh(self.logits(pictures, questions, batch_size=batch_size) / 2), np.float32)

    def logits(self, pictures: Pictures, questions: Sequence[str], *, batch_size: int = 16) -> Array:
        """(questions, answers) float32, each question about its own entry of ``pictures``.

        Questions and images of different lengths are padded and masked. A graph with dynamic quantization takes its
        activation ranges over the whole batch; for every other graph nothing depends on ``batch_size``.

        Raises:
            VlmEdgeError: there is not one picture for each question.
        """
        require_pairs(pictures, questions)
        parts = []
        for part in slices(len(questions), batch_size):
            input_ids, attention_mask = self.tokenizer.encode(questions[part])
            feed = {"input_ids": input_ids, "attention_mask": attention_mask, **stacked(list(pictures[part]))}
            parts.append(self._fusion.infer(feed)["logits"])
        return joined(parts, self._fusion, "logits")

    def dry_run(self, batch: Batch) -> None:
        """Run the component on a batch: one question an image; nothing is generated."""
        self.logits(self.encode_images(batch.images), batch.texts, batch_size=len(batch))
