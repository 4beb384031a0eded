"""What a decoder with gated cross-attention is fed of the images: their keys and values, and who sees which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vlm_edge.backends.base import Array
from vlm_edge.processing.manifest import CROSS_PREFIX, Prompt, TensorSpec
from vlm_edge.processing.text import Ids
from vlm_edge.runtime.vision import EncodedImage


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

    There is always one image token, so that no engine has to do without; masked, it changes nothing.
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
    """(tokens, images) of 1 and 0: which images each token of one request sees, from its own image token on."""
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
