"""Visual question answering: vision_encoder -> text_encoder -> decoder, greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vlm_edge.engines.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource, preprocess, read_image
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import Ids, TextEncoder
from vlm_edge.runtime.batches import batches, require

PAST_PREFIX = "past_key_values."
PRESENT_PREFIX = "present."
CROSS_PREFIX = "cross_key_values."


class VqaPipeline:
    """Answers questions about images. :meth:`answer` is the path whose latency is measured."""

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], text: TextEncoder) -> None:
        if manifest.generation is None:
            raise VlmEdgeError("manifest.json: generation: missing for a vqa pipeline", "export the model again")
        self.manifest = manifest
        self._generation = manifest.generation
        self._vision = require(engines, manifest, "vision_encoder")
        self._text_encoder = require(engines, manifest, "text_encoder")
        self._decoder = require(engines, manifest, "decoder")
        self._text = text
        past_names = [name for name in self._decoder.inputs if name.startswith(PAST_PREFIX)]
        self._present_to_past = [(PRESENT_PREFIX + name.removeprefix(PAST_PREFIX), name) for name in past_names]
        self._cross_names = [name for name in self._decoder.inputs if name.startswith(CROSS_PREFIX)]
        self._past_shapes = {name: self._decoder.inputs[name].shape for name in past_names}

    def answer(self, image: ImageSource, question: str) -> str:
        """One question about one image (a path, bytes, a PIL image, or RGB uint8 (height, width, 3)).

        Raises:
            VlmEdgeError: the image can't be read, as :func:`vlm_edge.processing.images.read_image`.
        """
        pixel_values = preprocess([read_image(image)], self.manifest.image)
        features = self._vision.infer({"pixel_values": pixel_values})["image_features"]
        return self._answer(features, [question], self._generation.max_new_tokens)[0]

    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array:
        """Images -> features (images, tokens, hidden) float32, ``batch_size`` at a time."""
        parts = [
            self._vision.infer({"pixel_values": preprocess(list(map(read_image, part)), self.manifest.image)})
            for part in batches(images, batch_size)
        ]
        if not parts:
            shape = [dim if isinstance(dim, int) else 0 for dim in self._vision.outputs["image_features"].shape]
            return np.zeros(shape, np.float32)
        return np.concatenate([part["image_features"] for part in parts])

    def answer_batch(
        self, features: Array, questions: Sequence[str], *, batch_size: int = 64, max_new_tokens: int | None = None
    ) -> list[str]:
        """Questions, each about its own row of ``features`` (questions, tokens, hidden).

        Questions of different lengths are padded and masked. A graph with dynamic quantization takes its activation
        ranges over the whole batch; for every other graph the answers don't depend on ``batch_size``.
        """
        if len(features) != len(questions):
            raise VlmEdgeError(
                f"answer_batch: {len(features)} rows of features for {len(questions)} questions",
                "give one row for each question",
            )
        limit = max_new_tokens or self._generation.max_new_tokens
        answers: list[str] = []
        for start in range(0, len(questions), batch_size):
            part = slice(start, start + batch_size)
            answers += self._answer(features[part], questions[part], limit)
        return answers

    def _answer(self, features: Array, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        input_ids, attention_mask = self._text.encode(questions)
        cross = self._text_encoder.infer(
            {"input_ids": input_ids, "attention_mask": attention_mask, "image_features": features}
        )
        rows = self._generate(attention_mask, cross, max_new_tokens)
        return [self._text.decode(row) for row in rows]

    def _generate(self, attention_mask: Ids, cross: Mapping[str, Array], max_new_tokens: int) -> list[list[int]]:
        """Greedy decoding of every row until its first end token, that one left out.

        One decoder run for each new token; the first has a past of length 0. Rows that have ended run on with the
        others and are cut afterwards.
        """
        batch = len(attention_mask)
        eos = self._generation.eos_token_id
        feed: dict[str, Array] = {"attention_mask": attention_mask}
        for name in self._cross_names:
            feed[name] = cross[name]
        for name, (_, heads, _, head_dim) in self._past_shapes.items():
            feed[name] = np.empty((batch, int(heads), 0, int(head_dim)), np.float32)
        tokens = np.full((batch, 1), self._generation.start_token_id, np.int64)
        rows: list[list[int]] = [[] for _ in range(batch)]
        running = list(range(batch))
        for _ in range(max_new_tokens):
            feed["input_ids"] = tokens
            outputs = self._decoder.infer(feed)
            tokens = outputs["logits"][:, -1:].argmax(-1)
            chosen = tokens[:, 0].tolist()
            running = [row for row in running if chosen[row] != eos]
            for row in running:
                rows[row].append(chosen[row])
            if not running:
                break
            for present, past in self._present_to_past:
                feed[past] = outputs[present]
        return rows
