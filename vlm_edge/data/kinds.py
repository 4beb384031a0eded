"""The table of task kinds: the keys of a line of ``metadata.jsonl``, and those of the data set's manifest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlm_edge.errors import short, shown

TaskKind = Literal["vqa", "classification", "retrieval", "captioning", "hallucination"]
Row = Mapping[str, Any]


class LineError(Exception):
    """A fault in one line."""


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Args:
        read: (line, the manifest's labels) -> a sample's text and answers. Raises LineError.
        example: what a line holds beside ``file_name``.
        faults: (labels, prompts) -> what is wrong with these two keys of the manifest.
        one_sample_an_image: several lines of an image are one sample with the answers of all.
    """

    read: Callable[[Row, Collection[str]], tuple[str, tuple[str, ...]]]
    example: str
    faults: Callable[[Sequence[str], Sequence[str]], list[str]]
    one_sample_an_image: bool = False


def text_of(row: Row, key: str) -> str:
    """A text that is there and not empty."""
    if key not in row:
        raise LineError(f"no `{key}`; the line has: {', '.join(sorted(row)[:20])[:200] or 'nothing'}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise LineError(f"{key}: give a text that is not empty, not {shown(row[key])}")
    return str(row[key])


def texts_of(row: Row, one: str, several: str, each: str) -> tuple[str, ...]:
    """``one`` (a text) or ``several`` (a list of texts, one for each ``each``)."""
    if one in row and several in row:
        raise LineError(f"give `{one}` or `{several}`, not both")
    if several not in row:
        return (text_of(row, one),)
    texts = row[several]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise LineError(f"{several}: give a list of texts, one for each {each}")
    return tuple(texts)


def no_classes(labels: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Faults of a kind that has neither classes nor prompts."""
    named = [name for name, value in (("labels", labels), ("prompts", prompts)) if value]
    return [f"`{name}` belongs to kind classification" for name in named]


def _question(row: Row, _labels: Collection[str]) -> tuple[str, tuple[str, ...]]:
    return text_of(row, "question"), texts_of(row, "answer", "answers", "annotator")


def _class(row: Row, labels: Collection[str]) -> tuple[str, tuple[str, ...]]:
    label = text_of(row, "label")
    if label not in labels:
        known = ", ".join(list(labels)[:10]) + (", ..." if len(labels) > 10 else "")
        raise LineError(f"label: {short(label)} is not among the manifest's labels: {known[:400]}")
    return "", (label,)


def _captions(row: Row, _labels: Collection[str]) -> tuple[str, tuple[str, ...]]:
    captions = texts_of(row, "caption", "captions", "caption")
    return captions[0], captions


def _references(row: Row, _labels: Collection[str]) -> tuple[str, tuple[str, ...]]:
    return "", texts_of(row, "caption", "captions", "caption")


def _poll(row: Row, _labels: Collection[str]) -> tuple[str, tuple[str, ...]]:
    return text_of(row, "question"), (yes_or_no(row, "answer"),)


def yes_or_no(row: Row, key: str) -> str:
    """``yes`` or ``no``, in whatever case."""
    answer = text_of(row, key).strip().lower()
    if answer not in ("yes", "no"):
        raise LineError(f"{key}: give yes or no, not {shown(row[key])}")
    return answer


def _beginning_faults(labels: Sequence[str], prompts: Sequence[str]) -> list[str]:
    problems = ["`labels` belongs to kind classification"] if labels else []
    if len(prompts) > 1 or any("{}" in prompt for prompt in prompts):
        problems.append("kind captioning takes one of `prompts`, a text without {} that every caption begins with")
    return problems


def _class_faults(labels: Sequence[str], prompts: Sequence[str]) -> list[str]:
    problems = [] if labels else ["kind classification needs `labels`, the candidate classes"]
    if len(set(labels)) != len(labels):
        problems.append("`labels` names a class twice")
    if not prompts or any(prompt.count("{}") != 1 for prompt in prompts):
        problems.append("kind classification needs `prompts`, templates with one {} for the class")
    return problems


KINDS: dict[TaskKind, Kind] = {
    "vqa": Kind(_question, '"question": "...", "answer": "..."', no_classes),
    "classification": Kind(_class, '"label": "..."', _class_faults),
    "captioning": Kind(_references, '"captions": ["...", "..."]', _beginning_faults, one_sample_an_image=True),
    "hallucination": Kind(_poll, '"question": "is there a ...?", "answer": "yes"', no_classes),
    "retrieval": Kind(_captions, '"captions": ["...", "..."]', no_classes, one_sample_an_image=True),
}
