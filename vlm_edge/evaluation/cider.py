"""CIDEr-D of captions, through pycocoevalcap's scorer.

Vedantam, Zitnick & Parikh, CIDEr: Consensus-based Image Description Evaluation (arXiv:1411.5726), section 4 and
appendix A.2 (CIDEr-D: clipped counts and a Gaussian on the lengths' difference, sigma 6): the mean over n = 1..4 of the
tf-idf weighted n-gram cosine with each reference, times 10. The scorer is pure Python; only its tokenizer, which is
replaced by :mod:`vlm_edge.evaluation.caption_tokens`, needs Java.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.caption_tokens import caption_tokens

MAX_CIDER = 10.0
"""The score of a caption that is its only reference, if it has four words or more."""


def cider_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """One score in 0..10 for each image; the score of the whole set is their mean.

    An n-gram's document frequency is the number of images whose references have it, so it belongs to the set of
    references as a whole, and a score changes with the other images'. What all references have in common counts
    nothing; with one image that is everything.

    Args:
        candidates: one caption for each image, which may be empty.
        references: the captions that people wrote of each image, one at least.

    Raises:
        VlmEdgeError: pycocoevalcap is not installed, or there are fewer than two images.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise VlmEdgeError("CIDEr needs pycocoevalcap, which is not installed", 'pip install "vlm-edge[captioning]"')
    if len(references) < 2:
        raise VlmEdgeError(
            f"CIDEr of {len(references)} image: words are weighted by how few of the images' references have them, so "
            "with one image every score is 0",
            "evaluate two images or more, better a whole test split",
        )
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer()
    for candidate, captions in zip(candidates, references, strict=True):
        scorer += (_joined(candidate), [_joined(caption) for caption in captions])
    _, scores = scorer.compute_score()
    return [float(score) for score in scores]


def _joined(caption: str) -> str:
    return " ".join(caption_tokens(caption))
