"""Visual question answering: the score of the VQA challenge.

Agrawal, Lu, Antol et al., VQA: Visual Question Answering (arXiv:1505.00468), section 4; https://visualqa.org/evaluation
lists the normalisation: lower case, no periods but decimal ones, number words as digits, no articles, contractions
with or without their apostrophe alike, other punctuation (but apostrophe and colon) as a space, no comma in a number.
The challenge's own code (GT-Vision-Lab/VQA, vqaEval.py) departs from that list in corners: punctuation beside a space
joins its neighbours, $, %, & and # stay, and answers that all annotators agree on are compared as they are. Here the
list holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.evaluation.tasks.base import (
    Query,
    Rows,
    TaskEvaluation,
    decoded_images,
    readable_samples,
    samples_by_image,
)
from vlm_edge.processing.images import Pixels
from vlm_edge.runtime.capabilities import Answers

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_NUMBER_COMMA = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_CONTRACTION_WORDS = """
aint arent cant couldve couldnt couldntve didnt doesnt dont hadnt hadntve hasnt havent hed hedve hes howd
howll hows idve im ive isnt itd itdve itll maam mightnt mightntve mightve mustnt mustve neednt notve oclock
oughtnt owsat shant shedve shouldve shouldnt shouldntve somebodyd somebodydve somebodyll somebodys someoned
someonedve someonell someones somethingd somethingdve somethingll thats thered theredve therere theres theyd
theydve theyll theyre theyve twas wasnt wedve weve werent whatll whatre whats whatve whens whered wheres
whereve whod whodve wholl whos whove whyll whyre whys wont wouldve wouldnt wouldntve yall yallll yalldve youd
youdve youll youre youve
"""
_CONTRACTIONS = frozenset(_CONTRACTION_WORDS.split())
"""Those that the challenge's code knows, without their apostrophes."""
_PUNCTUATION = re.compile(r"[^\w\s':.]|_")


def normalise_answer(text: str) -> str:
    """An answer normalised for comparison."""
    text = _NUMBER_COMMA.sub("", text.lower().replace("’", "'"))
    text = _PUNCTUATION.sub(" ", _PERIOD.sub("", text))
    words = [_DIGITS.get(word, word) for word in text.split()]
    return " ".join(_without_apostrophe(word) for word in words if word not in _ARTICLES)


def _without_apostrophe(word: str) -> str:
    """A contraction as it is written without; a possessive as it is."""
    bare = word.replace("'", "")
    return bare if bare in _CONTRACTIONS else word


def vqa_score(prediction: str, answers: Sequence[str]) -> float:
    """Score in 0..1 against the annotators' answers.

    One annotator: 1 for the same answer. Several: for each annotator left out in turn, min(1, agreeing others / 3),
    averaged. With fewer than four annotators the 3 is their number less one, so that full agreement still gives 1.
    """
    given = normalise_answer(prediction)
    agreeing = sum(normalise_answer(answer) == given for answer in answers)
    annotators = len(answers)
    if annotators == 1:
        return float(agreeing)
    needed = min(3, annotators - 1)
    without_agreeing = agreeing * min(1.0, (agreeing - 1) / needed)
    without_other = (annotators - agreeing) * min(1.0, agreeing / needed)
    return (without_agreeing + without_other) / annotators


QUESTIONS_AT_ONCE = 64


def answer_questions(
    pipeline: Answers, images: Mapping[Path, Pixels], asked: Mapping[Path, Sequence[Sample]]
) -> dict[str, list[int]]:
    """Sample id -> token ids of the answer, for all that is asked of these images.

    Each image is encoded once; questions of like length share a batch, so that little is padding.
    """
    features = pipeline.encode_images(list(images.values()))
    questions = [(row, sample) for row, path in enumerate(images) for sample in asked[path]]
    questions.sort(key=lambda question: len(question[1].text.split()))
    answers: dict[str, list[int]] = {}
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        part = questions[start : start + QUESTIONS_AT_ONCE]
        given = pipeline.answer_ids(features[[row for row, _ in part]], [sample.text for _, sample in part])
        answers.update((sample.id, ids) for (_, sample), ids in zip(part, given, strict=True))
    return answers


def answer_dataset(pipeline: Answers, dataset: Dataset, progress: Progress) -> Rows:
    """Answer every question whose image can be read; the scores are yet to be given."""
    asked = samples_by_image(dataset)
    unreadable: dict[Path, str] = {}
    answers: dict[str, list[int]] = {}
    for images in decoded_images(pipeline.manifest.image, dataset, progress, unreadable):
        answers |= answer_questions(pipeline, images, asked)
    samples = readable_samples(dataset, unreadable)
    tokens = [answers[sample.id] for sample in samples]
    return Rows(samples, {}, [pipeline.decode(ids) for ids in tokens], unreadable, tokens=tokens)


def run(pipeline: Answers, dataset: Dataset, progress: Progress) -> Rows:
    """Answer every question."""
    rows = answer_dataset(pipeline, dataset, progress)
    given = zip(rows.predictions, rows.samples, strict=True)
    return replace(rows, scores={"accuracy": [vqa_score(text, sample.answers) for text, sample in given]})


def answer(pipeline: Answers, query: Query) -> str:
    """One question, end to end."""
    return pipeline.answer(query.image, query.text)


VQA = TaskEvaluation(kind="vqa", primary="VQA accuracy", needs=("answers",), run=run, answer=answer)
