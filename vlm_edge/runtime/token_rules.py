"""What a model's generation settings forbid or force while it decodes greedily, as transformers' logits processors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.processing.manifest import Generation


def choose(
    logits: NDArray[np.float32], texts: Sequence[Sequence[int]], step: int, steps: int, generation: Generation
) -> NDArray[np.int64]:
    """The next token of every row.

    Args:
        logits: (rows, vocabulary) float32; they are changed where a rule forbids a token.
        texts: each row's tokens so far, the start token included; may be longer than what counts.
        step: how many tokens were chosen before.
        steps: how many may be chosen in all.
        generation: ``first_token_id`` and ``last_token_id`` force the first and the last choice
            (ForcedBOSTokenLogitsProcessor, ForcedEOSTokenLogitsProcessor); no ``no_repeat_ngram`` tokens in a row come
            twice (NoRepeatNGramLogitsProcessor).

    Returns:
        (rows,) int64.
    """
    if step == steps - 1 and generation.last_token_id is not None:
        return np.full(len(logits), generation.last_token_id, np.int64)
    if generation.first_token_id is not None and all(len(text) == 1 for text in texts):
        return np.full(len(logits), generation.first_token_id, np.int64)
    if generation.no_repeat_ngram:
        for row, text in zip(logits, texts, strict=True):
            row[repeating(text, generation.no_repeat_ngram)] = -np.inf
    return np.asarray(logits.argmax(axis=-1), np.int64)


def repeating(text: Sequence[int], size: int) -> list[int]:
    """The tokens that would end a run of ``size`` tokens that ``text`` holds already."""
    if len(text) < size - 1:
        return []
    last = list(text[len(text) - size + 1 :])
    places = range(len(text) - size + 1)
    return [text[place + size - 1] for place in places if list(text[place : place + size - 1]) == last]
