"""The score of one answer, as the VQA challenge takes it.

Agrawal, Lu, Antol et al., VQA: Visual Question Answering (arXiv:1505.00468), section 4; https://visualqa.org/evaluation
lists the normalisation: lower case, no periods but decimal ones, number words as digits, no articles, contractions
with or without their apostrophe alike, other punctuation (but apostrophe and colon) as a space, no comma in a number.
The challenge's own code (GT-Vision-Lab/VQA, vqaEval.py) departs from that list in corners: punctuation beside a space
joins its neighbours, $, %, & and # stay, and answers that all annotators agree on are compared as they are. Here the
list holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
    """The form in which two answers are compared."""
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
