"""``vlm-edge answer``: ask an engine about one photo or many, through the runtime of the device."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from vlm_edge.cli.settings import (
    Settings,
    echo,
    gathered,
    json_option,
    logs_on_stderr,
    pass_settings,
    print_json,
    stdout_is_stderr,
)
from vlm_edge.errors import UsageError, VlmEdgeError
from vlm_edge.processing.bounds import MOST_NEW_TOKENS
from vlm_edge.report.escape import terminal, terminal_lines

if TYPE_CHECKING:
    from vlm_edge.runtime.capabilities import Pipeline


@dataclass(frozen=True)
class _Opened:
    bundle: Path
    threads: int | None
    no_verify: bool


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(allow_dash=True))
@click.argument("question", required=False)
@click.option("--label", "labels", multiple=True, help="A class to choose from, for CLIP models. May be repeated.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1, MOST_NEW_TOKENS),
    help="Longest generated answer, in tokens.  [default: the bundle's]",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of each engine.  [default: the bundle's]")
@click.option("--no-verify", is_flag=True, help="Answer though the bundle's files differ from its manifest.")
@json_option
@pass_settings
@gathered(_Opened, "opened")
def answer(
    settings: Settings,
    image: str,
    question: str | None,
    labels: Sequence[str],
    max_new_tokens: int | None,
    opened: _Opened,
    as_json: bool,
) -> None:
    """Ask BUNDLE a QUESTION about IMAGE.

    BUNDLE is a folder with a manifest.json: a run's bundle or folder, or one that `export` or `compile` wrote. IMAGE
    is a photo; or a folder, a pattern in quotes ('photos/*.jpg'), a .jsonl file with lines like {"image": "1.jpg",
    "question": "..."}, or - for such lines, or paths, on stdin: the bundle is then opened once, and each photo's answer
    is a line (with --json, a JSON object). Models that compare images with texts (CLIP) take --label instead of a
    question.
    """
    from vlm_edge.runtime import load_pipeline

    with settings.working():
        folder = bundle_folder(opened.bundle)
        pipeline = load_pipeline(folder, threads=opened.threads, verify=not opened.no_verify)
    if opened.no_verify:
        warning = f"warning: {folder}: not verified: its answers may not be those that were measured"
        click.echo(terminal(warning), err=True)
    asked = _Asked(settings, folder, pipeline, labels, max_new_tokens)
    if names_many(image):
        _answer_many(asked, image, question, as_json)
        return
    result = asked.result(Photo(image, question))
    if as_json:
        print_json(result)
        return
    echo(result["answer"])
    for label, share in list(result.get("probabilities", {}).items())[:5]:
        settings.remark(f"  {share:6.1%} {label}")


def _answer_many(asked: _Asked, image: str, question: str | None, as_json: bool) -> None:
    """Print a line for each photo, as it is answered; name a photo without an answer on stderr, and go on.

    Raises:
        VlmEdgeError: there is no photo, or some have no answer.
    """
    total = failed = 0
    for photo in photos_of(image, question):
        total += 1
        try:
            result = asked.result(photo)
        except UsageError:
            raise
        except VlmEdgeError as error:
            failed += 1
            result = {"image": photo.path, "error": error.message}
            click.echo(terminal_lines(f"error: {error.message}"), err=True)
        if as_json:
            click.echo(json.dumps(result, ensure_ascii=True, allow_nan=False))
        elif "answer" in result:
            click.echo(f"{terminal(photo.path)}\t{terminal(result['answer'])}")
    if failed:
        raise VlmEdgeError(f"{failed} of {total} photos have no answer", "see the errors above")


def bundle_folder(path: Path) -> Path:
    """The folder with the manifest: ``path``, or the bundle of the run in it."""
    return path / "bundle" if (path / "bundle" / "manifest.json").is_file() else path


@dataclass(frozen=True)
class _Asked:
    """A pipeline and the options of every question to it."""

    settings: Settings
    folder: Path
    pipeline: Pipeline
    labels: Sequence[str]
    limit: int | None

    def result(self, photo: Photo) -> dict[str, Any]:
        """The answer about one photo, with the image and the question; JSON values.

        Raises:
            UsageError: the model doesn't take these options.
            VlmEdgeError: the photo can't be read, or the question is too long.
        """
        if photo.error is not None:
            raise photo.error
        with stdout_is_stderr(), logs_on_stderr(self.settings.verbosity):
            return self._result(Path(photo.path), photo.question)

    def _result(self, image: Path, question: str | None) -> dict[str, Any]:
        from vlm_edge.runtime.capabilities import answers, captions, chooses, classifies, scores, zero_shot

        pipeline, labels, name = self.pipeline, self.labels, str(image)
        limit = {} if self.limit is None else {"max_new_tokens": self.limit}
        if limit and pipeline.manifest.generation is None:
            raise UsageError(f"{self.folder}: this model writes nothing", "leave --max-new-tokens out")
        if answers(pipeline):
            if question is None:
                raise UsageError(
                    f"{self.folder}: this model answers questions, and there is none", "give one after the image"
                )
            asked = {"image": name, "question": question}
            if chooses(pipeline):
                shares = pipeline.scores(pipeline.encode_images([image]), [question])[0]
                return asked | _ranked(image, pipeline.manifest.labels or (), shares)
            return asked | {"answer": pipeline.answer(image, question, **limit)}
        if captions(pipeline):
            return {"image": name, "answer": pipeline.caption(image, question or "", **limit)}
        if classifies(pipeline):
            return _ranked(image, pipeline.manifest.labels or (), pipeline.classify([image])[0])
        if not labels:
            raise UsageError(
                f"{self.folder}: this model compares images with texts", "give --label once for every class"
            )
        if zero_shot(pipeline):
            return _ranked(image, labels, pipeline.classify([image], labels)[0])
        assert scores(pipeline)
        features = pipeline.encode_images([image]).repeat(len(labels), axis=0)
        return _ranked(image, labels, pipeline.probabilities(features, labels)[:, 1])


def _ranked(image: Path, labels: Sequence[str], shares: Iterable[float]) -> dict[str, Any]:
    """The likeliest label, and every label's probability, highest first."""
    ranked = sorted(zip(labels, map(float, shares), strict=True), key=lambda pair: -pair[1])
    return {"image": str(image), "answer": ranked[0][0], "probabilities": dict(ranked)}


SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of a folder's files that are photos."""
MOST_LINE_BYTES = 1 << 20
STDIN = "-"


@dataclass(frozen=True)
class Photo:
    """A photo and the question about it. ``error``: why its line can't be used."""

    path: str
    question: str | None = None
    error: VlmEdgeError | None = None


def names_many(image: str) -> bool:
    """True if ``image`` names any number of photos: a folder, a pattern, JSON Lines or stdin."""
    return image == STDIN or Path(image).is_dir() or image.endswith(".jsonl") or not _is_one(image)


def photos_of(image: str, question: str | None) -> Iterator[Photo]:
    """The photos that ``image`` names; those of stdin as they arrive. A line's own question replaces ``question``.

    Raises:
        VlmEdgeError: there is none, or the file can't be read.
    """
    if image == STDIN:
        yield from _lines(sys.stdin.buffer, STDIN, Path(), question)
    elif Path(image).is_dir():
        found = sorted(path for path in Path(image).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        yield from _listed(found, question, f"{image}: no photo in it ({', '.join(sorted(SUFFIXES))})")
    elif image.endswith(".jsonl"):
        try:
            with open(image, "rb", opener=_at_once) as file:
                yield from _lines(file, image, Path(image).parent, question)
        except OSError as error:
            raise VlmEdgeError(f"{image}: can't be read: {error.strerror}", "check the path") from error
    elif _is_one(image):
        yield Photo(image, question)
    else:
        matches = map(Path, glob.glob(image, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
        found = sorted(path for path in matches if path.is_file())
        yield from _listed(found, question, f"{image}: no file matches")


def _is_one(image: str) -> bool:
    return not glob.has_magic(image) or os.path.lexists(image)


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for a pipe's other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _listed(paths: list[Path], question: str | None, nothing: str) -> Iterator[Photo]:
    if not paths:
        raise VlmEdgeError(nothing, "check the path")
    for path in paths:
        yield Photo(str(path), question)


def _lines(file: BinaryIO, name: str, folder: Path, question: str | None) -> Iterator[Photo]:
    """A path, or ``{"image": PATH, "question": TEXT}``, a line; paths are relative to ``folder``."""
    number = 0
    while line := file.readline(MOST_LINE_BYTES):
        number += 1
        text = line.strip()
        if not text:
            continue
        try:
            row: Any = json.loads(text) if text.startswith(b"{") else {"image": os.fsdecode(text)}
            path, asked = row["image"], row.get("question", question)
            if not isinstance(path, str) or not isinstance(asked, str | None):
                raise TypeError("`image` and `question` are texts")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            reason = "no `image`" if isinstance(error, KeyError) else str(error)
            hint = 'write a path, or {"image": PATH, "question": TEXT}'
            yield Photo(f"{name}:{number}", error=VlmEdgeError(f"{name}:{number}: {reason}", hint))
            continue
        yield Photo(str(folder / path), asked)
