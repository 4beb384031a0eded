"""Greedy decoding with the cached ``decoder`` component, one graph for prefill and step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vlm_edge.engines.base import Array, Engine
from vlm_edge.processing.manifest import Generation
from vlm_edge.processing.text import Ids

PAST_PREFIX = "past_key_values."
PRESENT_PREFIX = "present."
CROSS_PREFIX = "cross_key_values."


class GreedyDecoder:
    """Decodes rows together. Rows that have ended run on with the others and are cut afterwards."""

    def __init__(self, decoder: Engine, generation: Generation) -> None:
        self._decoder = decoder
        self._generation = generation
        past_names = [name for name in decoder.inputs if name.startswith(PAST_PREFIX)]
        self._present_to_past = [(PRESENT_PREFIX + name.removeprefix(PAST_PREFIX), name) for name in past_names]
        self._cross_names = [name for name in decoder.inputs if name.startswith(CROSS_PREFIX)]
        self._past_shapes = {name: decoder.inputs[name].shape for name in past_names}

    def decode(
        self,
        cross: Mapping[str, Array],
        batch: int,
        *,
        attention_mask: Ids | None = None,
        prompt: Ids | None = None,
        max_new_tokens: int | None = None,
    ) -> list[list[int]]:
        """Every row's tokens until its first end token, that one left out.

        One decoder run for each new token; the first has a past of length 0.

        Args:
            cross: the cross-attention's keys and values by name (``cross_key_values.{layer}.key|value``).
            batch: number of rows.
            attention_mask: (batch, tokens) int64, what cross-attention may see; for decoders that take one.
            prompt: (batch, prompt_tokens) int64, what every row starts with; default: the start token alone.
            max_new_tokens: default: the manifest's.
        """
        generation = self._generation
        feed: dict[str, Array] = {name: cross[name] for name in self._cross_names}
        if attention_mask is not None and "attention_mask" in self._decoder.inputs:
            feed["attention_mask"] = attention_mask
        for name, (_, heads, _, head_dim) in self._past_shapes.items():
            feed[name] = np.empty((batch, int(heads), 0, int(head_dim)), np.float32)
        tokens = np.full((batch, 1), generation.start_token_id, np.int64) if prompt is None else prompt
        rows: list[list[int]] = [[] for _ in range(batch)]
        running = list(range(batch))
        for _ in range(max_new_tokens or generation.max_new_tokens):
            feed["input_ids"] = tokens
            outputs = self._decoder.infer(feed)
            tokens = outputs["logits"][:, -1:].argmax(-1)
            chosen = tokens[:, 0].tolist()
            running = [row for row in running if chosen[row] != generation.eos_token_id]
            for row in running:
                rows[row].append(chosen[row])
            if not running:
                break
            for present, past in self._present_to_past:
                feed[past] = outputs[present]
        return rows
