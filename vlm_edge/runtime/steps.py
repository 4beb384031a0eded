"""What changes in a decoder's feed from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vlm_edge.backends.base import Array
from vlm_edge.processing.text import Ids

LAST_ROW = ("cross_attention_mask", "cross_row_mask")
"""A generated token sees the images that the prompt's last token sees."""


class Steps:
    """One token more, seen by all that follow: called with the tokens that were chosen (batch, 1), it gives what is new
    in the next feed."""

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
