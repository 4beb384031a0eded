"""Is an answer of the graphs the one that ``generate`` gives? Token by token, but where the model can't choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_edge.backends.base import Array
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Generation
from vlm_edge.stages.export_check import REPORT_HINT, trim_heap

MAX_TOKENS = 32
"""Most tokens that are generated for the comparison."""
GREEDY = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": True, "output_scores": True}
"""Arguments of ``generate`` with which it returns what :meth:`Answer.of` reads."""


@dataclass(frozen=True)
class Answer:
    """An answer of ``generate``: token ids, and the scores (tokens, vocabulary) that each was chosen by.

    The scores are logits, changed as the model's generation settings ask.
    """

    tokens: list[int]
    scores: Array

    @staticmethod
    def of(reference: Any) -> Answer:
        """``generate``'s result for one row, asked for as :data:`GREEDY` says; what it took is given back."""
        trim_heap()
        scores = np.concatenate([step.numpy() for step in reference.scores])
        return Answer(reference.sequences[0, -len(scores) :].tolist(), scores)


def token_limit(generation: Generation) -> int:
    """The number of tokens that are generated for the comparison."""
    return min(generation.max_new_tokens, MAX_TOKENS)


def check_answers(
    answers: Sequence[Sequence[int]], wanted: Sequence[Answer], generation: Generation, tolerance: float
) -> dict[str, float]:
    """Every answer (token ids, the end token left out) against ``generate``'s.

    Returns:
        ``questions_equal``, and ``ties``: how many parted where two tokens' scores are within ``tolerance``, relative
        to the largest.

    Raises:
        VlmEdgeError: an answer parts from ``generate``'s anywhere else.
    """
    ties = sum(
        _parts_at_tie(index, answer, reference, generation, tolerance)
        for index, (answer, reference) in enumerate(zip(answers, wanted, strict=True))
    )
    return {"questions_equal": len(wanted) - ties, "ties": ties}


def _parts_at_tie(index: int, answer: Sequence[int], wanted: Answer, generation: Generation, tolerance: float) -> bool:
    full = len(answer) == token_limit(generation)
    ended = answer if full else [*answer, _end_of(wanted.tokens, len(answer), generation)]
    tie = _first_tie(ended, wanted, tolerance)
    if list(answer[:tie]) != _until_end(wanted.tokens, generation)[:tie]:
        raise VlmEdgeError(
            f"composed graphs: question {index} is answered {answer}, by generate {wanted.tokens} (token ids)",
            REPORT_HINT,
        )
    return tie is not None


def _end_of(wanted: Sequence[int], length: int, generation: Generation) -> int:
    """The end token behind an answer of ``length`` tokens: whichever the reference has there, else the first."""
    there = wanted[length] if length < len(wanted) else generation.eos_token_id
    return there if there in generation.eos_token_ids else generation.eos_token_id


def _first_tie(answer: Sequence[int], wanted: Answer, tolerance: float) -> int | None:
    """The first position where the answers differ because the model's two best tokens are within ``tolerance``."""
    for step, (ours, theirs) in enumerate(zip(answer, wanted.tokens, strict=False)):
        if ours != theirs:
            row = wanted.scores[step]
            largest = np.abs(row[np.isfinite(row)]).max()
            return step if row[theirs] - row[ours] <= tolerance * largest else None
    return None


def _until_end(tokens: Sequence[int], generation: Generation) -> list[int]:
    """Tokens before the first end token."""
    ends = [place for place, token in enumerate(tokens) if token in generation.eos_token_ids]
    return list(tokens[: min(ends, default=len(tokens))])
