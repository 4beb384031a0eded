"""The easy-VQA data set (Victor Zhou, MIT): 64x64 images of one coloured shape, with questions.

``{part}/questions.json`` is a list of [question, answer, image number]; the images are ``{part}/images/{number}.png``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from vlm_edge.data.dataset import Sample
from vlm_edge.data.manifest import DatasetManifest
from vlm_edge.documents import read_json
from vlm_edge.errors import VlmEdgeError

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
CAPTIONS = ("a {}", "an image of a {}")
"""Templates of an image's captions, in a retrieval task."""


def read_easy_vqa(manifest: DatasetManifest, folder: Path) -> list[Sample]:
    """Every question of a part (``kind: vqa``), or every image whose colour and shape the answers tell.

    Those two are its class (``classification``, for the manifest's labels) or make its captions (``retrieval``).
    ``hallucination`` takes the questions whether something is there ("is there a red shape?"), sliced by ``color`` or
    ``shape``, whichever is asked for; not the negated ones ("is there no red shape?"), whose yes claims nothing.

    Raises:
        VlmEdgeError: the data set has nothing for this kind of task, or cannot be read.
    """
    if manifest.kind not in ("vqa", "classification", "retrieval", "hallucination"):
        raise VlmEdgeError(
            f"{manifest.name}: kind: easy-vqa has no {manifest.kind} task",
            "it has vqa, classification, retrieval and hallucination",
        )
    questions = _questions(folder)
    if manifest.kind in ("classification", "retrieval"):
        return _images(manifest, folder, questions)
    samples = [
        _sample(folder, number, index, question, answer)
        for number, asked in questions.items()
        for index, (question, answer) in enumerate(asked)
    ]
    if manifest.kind == "vqa":
        return samples
    polls = []
    for sample in samples:
        words = {*sample.text.split()}
        if sample.answers[0] in ("yes", "no") and words.isdisjoint({"no", "not"}):
            polls.append(replace(sample, slices=("color" if words & {*COLORS} else "shape",)))
    return polls


def implied_attributes(questions: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """(colour, shape) of the one shape in an image, as far as its questions and answers tell them.

    An answer that is a colour or a shape tells it, and so does the colour or shape that "what is the ... shape?" names;
    "is there a red shape?" tells red when the answer is yes, "is there not a red shape?" when it is no.
    """
    answered: set[str] = set()
    for question, answer in questions:
        words = question.rstrip("?").split()
        named = {word for word in words if word in SHAPES or word in COLORS}
        if answer not in ("yes", "no"):
            answered |= named | {answer}
        elif (answer == "yes") != ("not" in words or "no" in words):
            answered |= named
    return _only(answered.intersection(COLORS)), _only(answered.intersection(SHAPES))


def _only(names: set[str]) -> str | None:
    return next(iter(names)) if len(names) == 1 else None


def _questions(folder: Path) -> dict[int, list[tuple[str, str]]]:
    """(question, answer) of every image, both in the order of the file."""
    path = folder / "questions.json"
    grouped: dict[int, list[tuple[str, str]]] = defaultdict(list)
    try:
        for question, answer, number in read_json(path, 2**28, "reinstall easy-vqa"):
            grouped[int(number)].append((str(question), str(answer)))
    except (TypeError, ValueError) as error:
        raise VlmEdgeError(f"{path}: not easy-VQA's [question, answer, image] rows", "reinstall easy-vqa") from error
    return dict(grouped)


def _sample(folder: Path, number: int, index: int, question: str, answer: str) -> Sample:
    kind = "yes/no" if answer in ("yes", "no") else "color" if answer in COLORS else "shape"
    image = folder / "images" / f"{number}.png"
    return Sample(f"{folder.name}/{number}#{index}", image, question, (answer,), (kind,))


def _images(manifest: DatasetManifest, folder: Path, questions: dict[int, list[tuple[str, str]]]) -> list[Sample]:
    samples = []
    for number, asked in questions.items():
        color, shape = implied_attributes(asked)
        if color is None or shape is None:
            continue
        name, image = f"{color} {shape}", folder / "images" / f"{number}.png"
        if manifest.kind == "retrieval":
            captions = tuple(template.format(name) for template in CAPTIONS)
            samples.append(Sample(f"{folder.name}/{number}", image, captions[0], captions, (shape,)))
        elif name in manifest.labels:
            samples.append(Sample(f"{folder.name}/{number}", image, "", (name,), (shape,)))
    return samples
