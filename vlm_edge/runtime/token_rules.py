"""Rules of a model's generation settings for greedy decoding, as transformers' logits processors apply them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_edge.processing.manifest import Generation

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
