"""Language models that see images: vision_encoder -> connector -> decoder, greedily, with 0 to 10 images a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import ImageSource
from vlm_edge.processing.manifest import CROSS_PREFIX, PipelineManifest, Prompt, TensorSpec
from vlm_edge.processing.patches import grid_positions
from vlm_edge.processing.picture import Picture
from vlm_edge.processing.text import Ids, Tokenizer
from vlm_edge.runtime.batches import batches, require, require_pairs, require_tokenizer, slices
from vlm_edge.runtime.capabilities import Batch, Capability
from vlm_edge.runtime.greedy import GreedyDecoder
from vlm_edge.runtime.vision import TILES_AT_ONCE, EncodedImage, ImageEncoder

Features = NDArray[np.object_]
"""One :class:`EncodedImage` an entry: images may differ in how many tokens they become."""


@dataclass(frozen=True)
class Request:
    """A question about ``images``; or the whole text in ``prompt``, with an image token for each image, as a chat
    template renders it (several turns, images between words)."""

    question: str = ""
    images: Sequence[ImageSource] = ()
    prompt: str | None = None


class GeneratePipeline:
    """Answers questions about any number of images. :meth:`answer` is the path whose latency is measured."""

    capabilities: frozenset[Capability] = frozenset({"answers"})

    def __init__(self, manifest: PipelineManifest, engines: Mapping[str, Engine], tokenizer: Tokenizer | None) -> None:
        if manifest.generation is None or manifest.prompt is None:
            raise VlmEdgeError(
                "manifest.json: generation or prompt: missing for a generate pipeline", "export the model again"
            )
        self.manifest = manifest
        self._prompt = manifest.prompt
        self._pad = manifest.generation.pad_token_id
        self._images = ImageEncoder(
            require(engines, manifest, "vision_encoder"),
            require(engines, manifest, "connector"),
            manifest.image,
            manifest.prompt,
        )
        decoder = require(engines, manifest, "decoder")
        self._decoder = GreedyDecoder(decoder, manifest.generation)
        self.tokenizer = require_tokenizer(tokenizer, manifest)
        asked = manifest.prompt.instruction
        self._instruction = None if asked is None else Tokenizer(self.tokenizer.folder, asked)

    def answer(self, image: ImageSource, question: str, *, max_new_tokens: int | None = None) -> str:
        """One question about one image (a path, bytes, a PIL image, or RGB uint8 (height, width, 3)).

        Args:
            max_new_tokens: the longest answer; default: the manifest's.

        Raises:
            VlmEdgeError: as :meth:`generate`.
        """
        return self.generate([Request(question, [image])], max_new_tokens=max_new_tokens)[0]

    def generate(
        self, requests: Sequence[Request], *, batch_size: int = 8, max_new_tokens: int | None = None
    ) -> list[str]:
        """The answers, ``batch_size`` requests at a time; requests of a batch may have different numbers of images.

        Raises:
            VlmEdgeError: an image can't be read, there are more images than the manifest has layouts for, or a
                request is longer than the model's context.
        """
        answers = []
        for part in batches(requests, batch_size):
            rows = self.generate_ids(part, max_new_tokens=max_new_tokens)
            answers += [self.decode(row) for row in rows]
        return answers

    def generate_ids(self, requests: Sequence[Request], *, max_new_tokens: int | None = None) -> list[list[int]]:
        """The answers' token ids, all requests in one batch; none for no request. Errors as :meth:`generate`."""
        encoded = [list(self._images.encode(request.images)) for request in requests]
        return self._answer(requests, encoded, max_new_tokens)

    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = TILES_AT_ONCE) -> Features:
        """Images -> one :class:`EncodedImage` each, ``batch_size`` tiles at a time."""
        features = np.empty(len(images), np.object_)
        features[:] = list(self._images.encode(images, batch_size))
        return features

    def answer_batch(
        self, features: Features, questions: Sequence[str], *, batch_size: int = 8, max_new_tokens: int | None = None
    ) -> list[str]:
        """As :meth:`answer_ids`, decoded."""
        rows = self.answer_ids(features, questions, batch_size=batch_size, max_new_tokens=max_new_tokens)
        return [self.decode(row) for row in rows]

    def answer_ids(
        self, features: Features, questions: Sequence[str], *, batch_size: int = 8, max_new_tokens: int | None = None
    ) -> list[list[int]]:
        """Questions, each about its own entry of ``features`` -> the ids of each answer, without the end token."""
        require_pairs(features, questions)
        rows = []
        for part in slices(len(questions), batch_size):
            images = [[image] for image in features[part]]
            asked = [Request(question) for question in questions[part]]
            rows += self._answer(asked, images, max_new_tokens)
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        """Ids of an answer -> its text."""
        return self.tokenizer.decode(ids)

    def dry_run(self, batch: Batch) -> None:
        """Run every component on a batch: one question an image."""
        requests = [Request(text, [image]) for image, text in zip(batch.images, batch.texts, strict=True)]
        self.generate_ids(requests, max_new_tokens=batch.max_new_tokens)

    def _answer(
        self, requests: Sequence[Request], images: Sequence[list[EncodedImage]], max_new_tokens: int | None
    ) -> list[list[int]]:
        """Token ids of the answers; ``images`` are the requests' own, encoded."""
        if not requests:
            return []
        texts = [
            prompt_text(self._prompt, request.question, pictures, request.prompt)
            for request, pictures in zip(requests, images, strict=True)
        ]
        if self._instruction is not None:
            questions = [self._instruction.encode([request.question]) for request in requests]
            images = [
                self._images.instructed(pictures, *question)
                for pictures, question in zip(images, questions, strict=True)
            ]
        return self._decode(texts, images, max_new_tokens)

    def _decode(
        self, texts: Sequence[str], images: Sequence[Sequence[EncodedImage]], max_new_tokens: int | None
    ) -> list[list[int]]:
        rows = [
            prompt_tokens(self.tokenizer, self._prompt, text, pictures)
            for text, pictures in zip(texts, images, strict=True)
        ]
        inputs = self._decoder.inputs
        first = prompt_feed(inputs, self._prompt, rows, images, self._pad)
        if "image_embeds" in inputs:
            embeds = [image.embeds for pictures in images for image in pictures if image.embeds is not None]
            width = int(inputs["image_embeds"].shape[1])
            first["image_embeds"] = np.concatenate([np.zeros((0, width), np.float32), *embeds])
        return self._decoder.run(first, Steps(first), max_new_tokens, rows)


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt, text: str, images: Sequence[EncodedImage]) -> list[int]:
    """The ids of a request's whole text (:func:`prompt_text`).

    Raises:
        VlmEdgeError: there are not as many image tokens as ``images`` become, or the text is longer than the context.
    """
    encoded, _ = tokenizer.encode([text], special_tokens=prompt.special_tokens)
    row: list[int] = encoded[0].tolist()
    wanted = sum(image.text.count(prompt.image_token) for image in images)
    if row.count(prompt.image_token_id) != wanted:
        raise VlmEdgeError(
            f"a request of {len(images)} images holds {row.count(prompt.image_token_id)} image tokens, not {wanted}",
            f"write {prompt.image_token!r} once for each image, and nowhere else",
        )
    return row


def prompt_feed(
    inputs: Mapping[str, TensorSpec],
    prompt: Prompt,
    rows: Sequence[Sequence[int]],
    images: Sequence[Sequence[EncodedImage]],
    pad: int,
) -> dict[str, Array]:
    """The decoder's ``inputs`` for the tokens of some requests, padded on the left: ids, masks, positions and the
    images' keys and values; all but ``image_embeds`` and the caches."""
    input_ids, mask = left_padded(rows, pad)
    feed: dict[str, Array] = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "position_ids": np.asarray(np.maximum(mask.cumsum(axis=1) - 1, 0), np.int64),
    }
    if len(inputs["position_ids"].shape) == 3:  # images have rows and columns of positions
        feed["position_ids"] = np.zeros((3, *mask.shape), np.int64)
        for index, (row, pictures) in enumerate(zip(rows, images, strict=True)):
            places = grid_positions(row, prompt.image_token_id, [image.grid for image in pictures])
            feed["position_ids"][:, index, mask.shape[1] - len(row) :] = places
    if "prefix_mask" in inputs:
        feed["prefix_mask"] = mask
    if "cross_attention_mask" in inputs:
        feed |= cross_feed(inputs, rows, images, prompt)
    return feed


def prompt_text(
    prompt: Prompt, question: str, images: Sequence[EncodedImage | Picture], whole: str | None = None
) -> str:
    """The text for the tokenizer: the layout for so many images (or ``whole``), with the question and the images in it.

    Raises:
        VlmEdgeError: there is no layout for so many images, or the image token stands where no image is.
    """
    token = prompt.image_token
    if whole is None:
        if len(images) >= len(prompt.layouts):
            raise VlmEdgeError(
                f"{len(images)} images in one request; this model takes 0 to {len(prompt.layouts) - 1}",
                "ask about fewer images, or give the whole prompt",
            )
        if token in question:
            raise VlmEdgeError(
                f"the question contains {token!r}, which stands for an image", "write it otherwise, or give `prompt`"
            )
        asked = question.strip() if prompt.strip_question else question
        whole = prompt.layouts[len(images)].replace("{question}", asked)
    pieces = whole.split(token)
    if len(pieces) != len(images) + 1:
        raise VlmEdgeError(
            f"the prompt holds {token!r} {len(pieces) - 1} times for {len(images)} images", "write it once an image"
        )
    return "".join(piece + image.text for piece, image in zip(pieces, images, strict=False)) + pieces[-1]


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Ids, Ids]:
    """Token rows -> ids and mask (rows, tokens) int64, padded on the left, so that all end together."""
    tokens = max(map(len, rows))
    input_ids, mask = np.full((len(rows), tokens), pad, np.int64), np.zeros((len(rows), tokens), np.int64)
    for index, row in enumerate(rows):
        input_ids[index, tokens - len(row) :] = row
        mask[index, tokens - len(row) :] = 1
    return input_ids, mask


LAST_ROW = ("cross_attention_mask", "cross_row_mask")
"""A generated token sees the images that the prompt's last token sees."""


class Steps:
    """Inputs of the next decoder step that change: called with the chosen tokens (batch, 1), which later ones see."""

    def __init__(self, first: Mapping[str, Array]) -> None:
        self._prefix = first.get("prefix_mask")
        self._mask = first["attention_mask"]
        self._position = first["position_ids"][..., -1:]
        self._same = {name: first[name][:, -1:] for name in LAST_ROW if name in first}
        if "image_embeds" in first:
            self._same["image_embeds"] = first["image_embeds"][:0]

    def __call__(self, tokens: Ids) -> dict[str, Array]:
        self._mask = np.concatenate([self._mask, np.ones_like(tokens)], axis=1)
        self._position = self._position + 1
        feed = {"input_ids": tokens, "attention_mask": self._mask, "position_ids": self._position, **self._same}
        if self._prefix is not None:
            self._prefix = feed["prefix_mask"] = np.concatenate([self._prefix, np.zeros_like(tokens)], axis=1)
        return feed


def cross_feed(
    inputs: Mapping[str, TensorSpec],
    rows: Sequence[Sequence[int]],
    images: Sequence[Sequence[EncodedImage]],
    prompt: Prompt,
) -> dict[str, Array]:
    """``cross_key_values`` (batch, groups, image_tokens, head_dim), padded with zeros to the row with most images;
    ``cross_attention_mask`` (batch, tokens, image_tokens): 1 for what a token attends to; and where the decoder takes
    it ``cross_row_mask`` (batch, tokens): 1 for tokens that see an image. Such a decoder (Mllama) lets the tokens that
    see none attend to all of their request's images.

    Without images there is one masked image token, since not every engine takes an empty axis.
    """
    lengths = [sum(0 if image.shown is None else len(image.shown) for image in pictures) for pictures in images]
    most, tokens = max(1, *lengths), max(map(len, rows))
    feed: dict[str, Array] = {}
    for name, spec in inputs.items():
        if name.startswith(CROSS_PREFIX):
            feed[name] = np.zeros((len(rows), int(spec.shape[1]), most, int(spec.shape[3])), np.float32)
            for index, (pictures, length) in enumerate(zip(images, lengths, strict=True)):
                if pictures:
                    feed[name][index, :, :length] = np.concatenate([image.cross[name] for image in pictures], axis=1)
    mask = np.zeros((len(rows), tokens, most), np.int64)
    sees = np.zeros((len(rows), tokens), np.int64)
    for index, (row, pictures, length) in enumerate(zip(rows, images, lengths, strict=True)):
        visible = visible_images(row, prompt, len(pictures))
        shown = [np.outer(visible[:, k], image.shown) for k, image in enumerate(pictures) if image.shown is not None]
        start = tokens - len(row)
        mask[index, start:, :length] = np.concatenate([np.zeros((len(row), 0), np.int64), *shown], axis=1)
        sees[index, start:] = visible.any(axis=1)
        if "cross_row_mask" in inputs:
            mask[index, start:, :length][~visible.any(axis=1)] = 1
    feed["cross_attention_mask"] = mask
    if "cross_row_mask" in inputs:
        feed["cross_row_mask"] = sees
    return feed


def visible_images(row: Sequence[int], prompt: Prompt, images: int) -> Ids:
    """(tokens, images) int64: 1 where a token of one request sees an image, from its image token on."""
    places = [index for index, token in enumerate(row) if token == prompt.image_token_id]
    ends = [*places[1:], len(row)][: len(places)]
    if prompt.image_reach == "group":
        for index in range(len(places) - 2, -1, -1):
            if ends[index] == places[index] + 1:
                ends[index] = ends[index + 1]
    visible = np.zeros((len(row), images), np.int64)
    for index, (start, end) in enumerate(zip(places, ends, strict=True)):
        visible[start:end, index] = 1
    return visible
