"""Greedy decoding with the cached ``decoder`` component, one graph for prefill and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.bounds import MOST_NEW_TOKENS
from vlm_edge.processing.manifest import SELF_MASK, Generation, TensorSpec
from vlm_edge.processing.text import Ids
from vlm_edge.runtime.token_rules import TokenRules

PAST_PREFIX = "past_key_values."
PRESENT_PREFIX = "present."
_AGAIN = "export the model again"


class GreedyDecoder:
    """Decodes rows together. Rows that have ended run on with the others and are cut afterwards."""

    def __init__(self, decoder: Engine, generation: Generation) -> None:
        self._decoder = decoder
        self._generation = generation
        self._rules = TokenRules(generation)
        past_names = [name for name in decoder.inputs if name.startswith(PAST_PREFIX)]
        self._present_to_past = [(PRESENT_PREFIX + name.removeprefix(PAST_PREFIX), name) for name in past_names]
        self._past_shapes = {name: decoder.inputs[name].shape for name in past_names}
        wanted = ["logits", *(present for present, _ in self._present_to_past)]
        if missing := [name for name in wanted if name not in decoder.outputs]:
            raise VlmEdgeError(
                f"manifest.json: components.decoder.outputs: no {missing[0]!r}, which decoding needs", _AGAIN
            )
        vocabulary = decoder.outputs["logits"].shape[-1]
        chosen = [token for token in generation.named_tokens if isinstance(vocabulary, int) and token >= vocabulary]
        if chosen:
            raise VlmEdgeError(
                f"manifest.json: generation: token {chosen[0]} is none of the decoder's {vocabulary}", _AGAIN
            )
        for name, shape in self._past_shapes.items():
            if len(shape) != 4 or not (isinstance(shape[1], int) and isinstance(shape[3], int)):
                place = f"manifest.json: components.decoder.inputs.{name}"
                raise VlmEdgeError(f"{place}: {list(shape)}, not (batch, heads, past, head_dim)", _AGAIN)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The decoder's inputs."""
        return self._decoder.inputs

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
            cross: outputs of the component before; the decoder takes those it has inputs for, such as the
                cross-attention's keys and values (``cross_key_values.{layer}.key|value``).
            batch: number of rows.
            attention_mask: (batch, tokens) int64, 1 for tokens that cross-attention sees; for decoders that take one.
            prompt: (batch, prompt_tokens) int64, the first tokens of every row; default: the start token alone.
            max_new_tokens: default: the manifest's.
        """
        feed: dict[str, Array] = {name: cross[name] for name in self._decoder.inputs if name in cross}
        if attention_mask is not None and "attention_mask" in self._decoder.inputs:
            feed["attention_mask"] = attention_mask
        start = np.full((batch, 1), self._generation.start_token_id, np.int64) if prompt is None else prompt
        feed["input_ids"] = start
        if SELF_MASK not in self._decoder.inputs:
            return self.run(feed, lambda tokens: {"input_ids": tokens}, max_new_tokens)
        feed[SELF_MASK] = np.ones_like(start)

        def following(tokens: Ids) -> dict[str, Array]:
            feed[SELF_MASK] = np.concatenate([feed[SELF_MASK], np.ones_like(tokens)], axis=1)
            return {"input_ids": tokens, SELF_MASK: feed[SELF_MASK]}

        return self.run(feed, following, max_new_tokens)

    def run(
        self,
        first: Mapping[str, Array],
        following: Callable[[Ids], Mapping[str, Array]],
        max_new_tokens: int | None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """As :meth:`decode`, for decoders with further inputs.

        Args:
            first: inputs of the first run without the past, ``input_ids`` (batch, new) among them.
            following: the chosen tokens (batch, 1) -> the inputs that change in the next run.
            max_new_tokens: default: the manifest's lengths.
            prompts: each row's tokens without padding; default: ``input_ids``.

        Raises:
            VlmEdgeError: ``max_new_tokens`` is out of bounds, or a prompt and its answer are longer than the model's
                ``max_length`` or the decoder's positions.
        """
        feed = dict(first)
        batch = len(feed["input_ids"])
        for name, (_, heads, _, head_dim) in self._past_shapes.items():
            feed[name] = np.empty((batch, int(heads), 0, int(head_dim)), np.float32)
        rows: list[list[int]] = [[] for _ in range(batch)]
        running = list(range(batch))
        texts: list[list[int]] = feed["input_ids"].tolist() if prompts is None else [list(row) for row in prompts]
        begins = [len(text) for text in texts]
        limits = [self._most_new(begin, max_new_tokens) for begin in begins]
        ends = [begin + limit for begin, limit in zip(begins, limits, strict=True)]
        stops = self._generation.eos_token_ids
        for step in range(max(limits, default=0)):
            outputs = self._decoder.infer(feed)
            tokens = self._rules.choose(outputs["logits"][:, -1], texts, begins, ends)[:, None]
            chosen = tokens[:, 0].tolist()
            for text, token in zip(texts, chosen, strict=True):
                text.append(token)
            running = [row for row in running if step < limits[row] and chosen[row] not in stops]
            for row in running:
                rows[row].append(chosen[row])
            if not running:
                break
            feed.update(following(tokens))
            for present, past in self._present_to_past:
                feed[past] = outputs[present]
        return rows

    def _most_new(self, given: int, max_new_tokens: int | None) -> int:
        """The number of tokens that may follow ``given`` ones."""
        generation = self._generation
        if max_new_tokens is not None and not 1 <= max_new_tokens <= MOST_NEW_TOKENS:
            raise VlmEdgeError(f"max_new_tokens: {max_new_tokens}; allowed: 1 to {MOST_NEW_TOKENS}", "give less")
        left = MOST_NEW_TOKENS if generation.positions is None else generation.positions - given + 1
        if left < (max_new_tokens or 1):
            raise VlmEdgeError(
                f"a prompt of {given} tokens and {max_new_tokens or 1} new ones: the decoder has "
                f"{generation.positions} positions, of which the last token needs none",
                "ask for less at once, or for fewer new tokens (max_new_tokens)",
            )
        if max_new_tokens is not None:
            return max_new_tokens
        if generation.max_length is None:
            return min(generation.max_new_tokens, left)
        if given >= generation.max_length:
            raise VlmEdgeError(
                f"a prompt of {given} tokens leaves no room for an answer: the model's generation setting max_length "
                f"is {generation.max_length}, prompt included",
                "ask for less at once, or say how many new tokens there may be (max_new_tokens)",
            )
        return min(generation.max_new_tokens, generation.max_length - given, left)
