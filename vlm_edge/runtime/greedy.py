"""Greedy decoding with the cached ``decoder`` component, by the rules of the model's generation settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.bounds import MOST_NEW_TOKENS
from vlm_edge.processing.manifest import SELF_MASK, Generation, TensorSpec
from vlm_edge.processing.text import Ids

PAST_PREFIX = "past_key_values."
PRESENT_PREFIX = "present."
_AGAIN = "export the model again"


Row = NDArray[np.float32]


class Text(NamedTuple):
    """One row's tokens so far, the start token or the prompt included and padding left out."""

    tokens: Sequence[int]
    begin: int
    """Number of tokens that were given."""
    end: int
    """Number of tokens that there may be in all."""


Rule = Callable[[Row, Text], None]
"""Changes a row of logits (vocabulary,)."""


class TokenRules:
    """The rules of one manifest, in the order in which ``generate`` applies them (transformers 5.23,
    generation/utils.py, ``_get_logits_processor``). Plain greedy decoding has none."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._ends = sorted(generation.eos_token_ids)
        self._words = [word for word in generation.bad_words_ids if word not in {(end,) for end in self._ends}]
        self._suppressed = list(generation.suppress_tokens)
        asked: list[tuple[object, Rule]] = [
            (generation.repetition_penalty != 1.0, self._penalize_repetition),
            (generation.no_repeat_ngram, self._forbid_ngrams),
            (self._words, self._forbid_words),
            (generation.min_length or generation.min_new_tokens, self._forbid_early_end),
            (generation.first_token_id is not None, self._force_first),
            (generation.last_token_id is not None, self._force_last),
            (generation.exponential_decay_length_penalty, self._favour_end),
            (generation.begin_suppress_tokens, self._suppress_at_begin),
        ]
        self._rules = [rule for present, rule in asked if present]

    def choose(
        self, logits: NDArray[np.float32], texts: Sequence[Sequence[int]], begins: Sequence[int], ends: Sequence[int]
    ) -> NDArray[np.int64]:
        """The next token of every row.

        Args:
            logits: (rows, vocabulary) float32.
            texts: each row's tokens so far, the start token or the prompt included, padding left out.
            begins: how many of them were given.
            ends: how many tokens each row may have in all.

        Returns:
            (rows,) int64.
        """
        if self._rules or self._suppressed:
            logits = logits.copy()  # the engine's output, which others may hold
            for row, tokens, begin, end in zip(logits, texts, begins, ends, strict=True):
                for rule in self._rules:
                    rule(row, Text(tokens, begin, end))
            logits[:, self._suppressed] = -np.inf  # SuppressTokensLogitsProcessor
        return np.asarray(logits.argmax(axis=-1), np.int64)

    def _penalize_repetition(self, row: Row, text: Text) -> None:
        """RepetitionPenaltyLogitsProcessor."""
        penalty = self._generation.repetition_penalty
        seen = [token for token in set(text.tokens) if token < len(row)]
        scores = row[seen]
        row[seen] = np.where(scores < 0, scores * penalty, scores / penalty)

    def _forbid_ngrams(self, row: Row, text: Text) -> None:
        """NoRepeatNGramLogitsProcessor."""
        row[repeating(text.tokens, self._generation.no_repeat_ngram)] = -np.inf

    def _forbid_words(self, row: Row, text: Text) -> None:
        """NoBadWordsLogitsProcessor."""
        begun = [word for word in self._words if tuple(text.tokens[len(text.tokens) - len(word) + 1 :]) == word[:-1]]
        row[[word[-1] for word in begun]] = -np.inf

    def _forbid_early_end(self, row: Row, text: Text) -> None:
        """MinLengthLogitsProcessor and MinNewTokensLengthLogitsProcessor: the second, where it is set, alone."""
        new, least = self._generation.min_new_tokens, self._generation.min_length
        if len(text.tokens) < (text.begin + new if new else least):
            row[self._ends] = -np.inf

    def _force_first(self, row: Row, text: Text) -> None:
        """ForcedBOSTokenLogitsProcessor: behind a start token that stands alone."""
        if len(text.tokens) == 1:
            _force(row, self._generation.first_token_id)

    def _force_last(self, row: Row, text: Text) -> None:
        """ForcedEOSTokenLogitsProcessor."""
        if len(text.tokens) == text.end - 1:
            _force(row, self._generation.last_token_id)

    def _favour_end(self, row: Row, text: Text) -> None:
        """ExponentialDecayLengthPenalty."""
        assert self._generation.exponential_decay_length_penalty is not None
        start, factor = self._generation.exponential_decay_length_penalty
        beyond = len(text.tokens) - text.begin - start
        if beyond > 0:
            scores = row[self._ends]
            with np.errstate(over="ignore"):  # beyond float64 it is infinite
                growth = np.float64(factor) ** beyond - 1
                row[self._ends] = np.where(np.isfinite(scores), scores + np.abs(scores) * growth, scores)

    def _suppress_at_begin(self, row: Row, text: Text) -> None:
        """SuppressTokensAtBeginLogitsProcessor: at the first token that is not forced."""
        forced = text.begin == 1 and self._generation.first_token_id is not None
        if len(text.tokens) == text.begin + forced:
            row[list(self._generation.begin_suppress_tokens)] = -np.inf


def _force(row: Row, token: int | None) -> None:
    row[:] = -np.inf
    row[token] = 0.0


def repeating(text: Sequence[int], size: int) -> list[int]:
    """The tokens that would end a run of ``size`` tokens that ``text`` holds already."""
    if len(text) < size - 1:
        return []
    last = list(text[len(text) - size + 1 :])
    places = range(len(text) - size + 1)
    return [text[place + size - 1] for place in places if list(text[place : place + size - 1]) == last]


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
