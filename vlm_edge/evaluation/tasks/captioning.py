"""Captioning: CIDEr-D against the captions that people wrote, by pycocoevalcap's scorer and a tokenizer without Java.

Vedantam, Zitnick & Parikh, CIDEr: Consensus-based Image Description Evaluation (arXiv:1411.5726), section 4 and
appendix A.2 (CIDEr-D: clipped counts and a Gaussian on the lengths' difference, sigma 6): the mean over n = 1..4 of the
tf-idf weighted n-gram cosine with each reference, times 10.

Captions become words as the COCO caption evaluation takes them: Chen, Fang, Lin et al., Microsoft COCO Captions
(arXiv:1504.00325), section 3.2: the Penn Treebank tokenization of Stanford's PTBTokenizer (version 3.4.1,
``-lowerCase``), which pycocoevalcap runs in Java, then without punctuation. Here are its rules for captions:
contractions split (``do n't``, ``man 's``, ``can not``), words with a hyphen, a slash or an abbreviation's periods kept
whole, currency and percent signs apart, brackets spelled ``-lrb-``. Its grammar knows more (URLs, e-mail addresses,
smileys, the abbreviations of states and companies): those come out otherwise. docs/measuring.md says how often the two
agree.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.tasks.base import Query, Rows, TaskEvaluation, decoded_images, readable_samples
from vlm_edge.runtime.capabilities import Captions

PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--"])
PUNCTUATION |= {"...", ";"}
"""Tokens that pycocoevalcap leaves out. It lower-cases first, so ``-lrb-`` stays; ``!!`` and ``??`` are no member."""
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELLED = {
    "…": "...",
    "–": "--",
    "—": "--",
    "£": "#",
    "€": "$",
    "¢": "cents",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    '"': "''",
}
_SPELLED |= _BRACKETS

_ABBREVIATIONS = (
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|mrs?|ms|dr|prof|rev|gen|col|sgt|capt|lt|"
    r"gov|sen|rep|pres|st|ave|blvd|rd|mt|ft|dept|bldg|jr|sr|inc|co|corp|ltd|vs|etc|ph\.d"
)
"""Words that keep their period."""
_TWO_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}
"""Words that are two, and the letters of the first."""
_WORD = r"[^\W_](?:\w*[^\W_])?"
_ENDING = r"(?:['’](?:s|m|d|re|ve|ll)|n['’]t)"
_PART = rf"(?:(?!\w*n['’]t\b){_WORD}|\w+?(?=n['’]t\b))"
_TOKEN = re.compile(
    "|".join(
        [
            rf"(?P<ending>(?<=[\w.]){_ENDING}(?!\w))",
            rf"(?P<abbreviation>(?:{_ABBREVIATIONS})\.(?!\w))",
            r"(?P<initials>(?<![\w.])(?:[^\W\d_]\.)+(?:[^\W\d_](?!\w))?)",
            r"(?P<time>\d+:\d\d(?=[ap]\.?m\b))",
            r"(?P<number>(?<!\w)(?:\d+(?:[.,:/]\d+)+|\.\d+|[-+]\d+)(?![\w-])|no\.(?=\s?\d))",
            r"(?P<apostrophe>\bo['’]clock\b|\bma['’]am\b|\b[dlo]['’][^\W\d_]{2,}|['’]\d0s\b|['’](?:em|til|n)\b)",
            r"(?P<whole>\bw/o\b|(?-i:\b[A-Z]+(?:&[A-Z]+)+\b))",
            rf"(?P<word>{_PART}(?:[-/.]{_PART})*)",
            r"(?P<run>\.{3,}|-{2,}|[!?]+|``|'')",
            r"(?P<other>\S)",
        ]
    ),
    re.IGNORECASE,
)


def caption_tokens(caption: str) -> list[str]:
    """The words of one caption, in lower case, punctuation left out."""
    tokens: list[str] = []
    for match in _TOKEN.finditer(caption):
        tokens += _spelled(match.group().lower(), str(match.lastgroup))
    return [token for token in tokens if token not in PUNCTUATION]


def _spelled(token: str, kind: str) -> list[str]:
    """Tokens of one match."""
    if kind == "run" and token.startswith("."):
        return ["..."]
    if kind == "run" and token.startswith("-"):
        return ["--"]
    if kind == "ending":
        return [token.replace("’", "'")]
    if token in _TWO_WORDS:
        return [token[: _TWO_WORDS[token]], token[_TWO_WORDS[token] :]]
    return [_SPELLED.get(token, token)]


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
        scorer += (" ".join(caption_tokens(candidate)), [" ".join(caption_tokens(each)) for each in captions])
    _, scores = scorer.compute_score()
    return [float(score) for score in scores]


def run(pipeline: Captions, dataset: Dataset, progress: Progress) -> Rows:
    """Caption every image, begun as the data set's prompt says.

    Document frequencies are those of all references of ``dataset``, also where the image cannot be read. The score is
    given as ``accuracy`` and under its own name.
    """
    prompt = dataset.prompts[0] if dataset.prompts else ""
    unreadable: dict[Path, str] = {}
    tokens: dict[Path, list[int]] = {}
    for images in decoded_images(pipeline.manifest.image, dataset, progress, unreadable):
        tokens.update(zip(images, pipeline.caption_ids(list(images.values()), prompt), strict=True))
    captions = {path: pipeline.decode(ids) for path, ids in tokens.items()}
    scores = cider_scores(
        [captions.get(sample.image, "") for sample in dataset.samples], [sample.answers for sample in dataset.samples]
    )
    by_id = {sample.id: score for sample, score in zip(dataset.samples, scores, strict=True)}
    samples = readable_samples(dataset, unreadable)
    column = [by_id[sample.id] for sample in samples]
    return Rows(
        samples=samples,
        scores={"accuracy": column, "cider": column},
        predictions=[captions[sample.image] for sample in samples],
        unreadable=unreadable,
        tokens=[tokens[sample.image] for sample in samples],
    )


def answer(pipeline: Captions, query: Query) -> str:
    """One caption, end to end, begun as the data set's prompt says."""
    return pipeline.caption(query.image, *query.prompts[:1])


CAPTIONING = TaskEvaluation(
    kind="captioning",
    primary="CIDEr",
    needs=("captions",),
    run=run,
    answer=answer,
    metrics=("cider",),
    units={"accuracy": "CIDEr", "cider": "CIDEr"},
)
