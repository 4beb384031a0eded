"""CIDEr against pycocoevalcap's Cider, and against the definition written out with numpy."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.tasks.captioning import caption_tokens, cider_scores

pytest.importorskip("pycocoevalcap")

MAX_CIDER = 10.0
"""The score of a caption that is its only reference, if it has four words or more."""
REFERENCES = [
    ["A dog runs on the beach.", "A brown dog runs along the sea", "The dog is running"],
    ["Two people ride a red motorcycle down a street", "A couple on a motorcycle."],
    ["A plate of food with rice and beans", "Rice, beans and meat on a white plate", "A plate on a table"],
    ["A dog sleeps on a red couch"],
]
CANDIDATES = ["a brown dog runs on the beach", "a couple rides a motorcycle", "a dog on a table", ""]


def grams(caption: str, n: int) -> Counter[tuple[str, ...]]:
    words = caption_tokens(caption)
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def by_hand(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """CIDEr-D by its definition (arXiv:1411.5726): tf-idf vectors over all n-grams of a length, for n = 1..4.

    The lengths in the Gaussian are those of pycocoevalcap: bigrams.
    """
    scores = np.zeros(len(candidates))
    for n in range(1, 5):
        known = sorted({gram for captions in [candidates, *references] for each in captions for gram in grams(each, n)})
        documents = [sum(any(gram in grams(each, n) for each in captions) for captions in references) for gram in known]
        idf = np.log(len(references) / np.maximum(1, documents))
        for index, (candidate, captions) in enumerate(zip(candidates, references, strict=True)):
            ours = np.array([grams(candidate, n)[gram] for gram in known]) * idf
            for caption in captions:
                theirs = np.array([grams(caption, n)[gram] for gram in known]) * idf
                norm = np.linalg.norm(ours) * np.linalg.norm(theirs)
                cosine = (np.minimum(ours, theirs) * theirs).sum() / norm if norm else 0.0
                apart = grams(candidate, 2).total() - grams(caption, 2).total()
                scores[index] += 10 * cosine * np.exp(-(apart**2) / (2 * 6**2)) / len(captions) / 4
    return scores


def test_scores_are_pycocoevalcaps_own_on_the_same_tokens() -> None:
    from pycocoevalcap.cider.cider import Cider

    truth = {index: [" ".join(caption_tokens(each)) for each in captions] for index, captions in enumerate(REFERENCES)}
    given = {index: [" ".join(caption_tokens(each))] for index, each in enumerate(CANDIDATES)}
    mean, each = Cider().compute_score(truth, given)
    scores = cider_scores(CANDIDATES, REFERENCES)
    assert scores == each.tolist()
    assert np.mean(scores) == mean


def test_scores_are_the_definition() -> None:
    np.testing.assert_allclose(cider_scores(CANDIDATES, REFERENCES), by_hand(CANDIDATES, REFERENCES), atol=1e-12)


def test_the_only_reference_itself_has_the_largest_score_and_an_empty_caption_none() -> None:
    scores = cider_scores(["a dog sleeps on a couch", "", "red"], [["A dog sleeps on a couch."], ["a cat"], ["red"]])
    assert scores[0] == pytest.approx(MAX_CIDER)
    assert scores[1] == 0
    assert scores[2] == pytest.approx(MAX_CIDER / 4)  # one word has no n-gram of two words or more


def test_one_image_is_refused_because_every_score_would_be_0() -> None:
    with pytest.raises(VlmEdgeError, match="CIDEr of 1 image"):
        cider_scores(["a dog"], [["a dog"]])


def test_without_pycocoevalcap_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(VlmEdgeError, match="pycocoevalcap") as caught:
        cider_scores(CANDIDATES, REFERENCES)
    assert caught.value.hint == 'pip install "vlm-edge[captioning]"'
