"""``vlm-edge answer``: ask an engine one question about one image, through the runtime that ships."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from vlm_edge.cli.settings import Settings, json_option, pass_settings, print_json
from vlm_edge.errors import VlmEdgeError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("question", required=False)
@click.option("--label", "labels", multiple=True, help="A class to choose from, for CLIP models. May be repeated.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each engine.  [default: the bundle's]")
@json_option
@pass_settings
def answer(
    settings: Settings,
    bundle: Path,
    image: Path,
    question: str | None,
    labels: Sequence[str],
    threads: int | None,
    as_json: bool,
) -> None:
    """Ask BUNDLE a QUESTION about IMAGE.

    BUNDLE is a folder with a manifest.json: a run's bundle, or what `export` or `compile` wrote; a run's folder will
    do. Models that compare images with texts (CLIP) take --label instead of a question.
    """
    with settings.working():
        result = _result(bundle_folder(bundle), image, question, labels, threads)
    if as_json:
        print_json(result)
        return
    click.echo(result["answer"])
    for label, share in list(result.get("probabilities", {}).items())[:5]:
        settings.remark(f"  {share:6.1%} {label}")


def bundle_folder(path: Path) -> Path:
    """The folder with the manifest: ``path``, or the bundle of the run in it."""
    return path / "bundle" if (path / "bundle" / "manifest.json").is_file() else path


def _result(
    folder: Path, image: Path, question: str | None, labels: Sequence[str], threads: int | None
) -> dict[str, Any]:
    from vlm_edge.runtime import (
        AnswerHeadPipeline,
        CaptioningPipeline,
        EmbeddingPipeline,
        GeneratePipeline,
        MatchingPipeline,
        VqaPipeline,
        load_pipeline,
    )

    pipeline = load_pipeline(folder, threads=threads)
    if isinstance(pipeline, VqaPipeline | GeneratePipeline | AnswerHeadPipeline):
        if question is None:
            raise VlmEdgeError(f"{folder}: this model answers questions, and there is none", "give one after the image")
        if isinstance(pipeline, AnswerHeadPipeline):
            shares = pipeline.scores(pipeline.encode_images([image]), [question])[0]
            return {"question": question} | _ranked(image, pipeline.manifest.labels or (), shares)
        return {"image": str(image), "question": question, "answer": pipeline.answer(image, question)}
    if isinstance(pipeline, CaptioningPipeline):
        return {"image": str(image), "answer": pipeline.caption(image, question or "")}
    if isinstance(pipeline, EmbeddingPipeline):
        return _ranked(image, pipeline.manifest.labels or (), pipeline.classify([image])[0])
    if isinstance(pipeline, MatchingPipeline) and labels:
        features = pipeline.encode_images([image]).repeat(len(labels), axis=0)
        return _ranked(image, labels, pipeline.probabilities(features, labels)[:, 1])
    if not labels or isinstance(pipeline, MatchingPipeline):
        raise VlmEdgeError(f"{folder}: this model compares images with texts", "give --label once for every class")
    return _ranked(image, labels, pipeline.classify([image], list(labels))[0])


def _ranked(image: Path, labels: Sequence[str], shares: Iterable[float]) -> dict[str, Any]:
    """The likeliest label, and every label's probability, highest first."""
    ranked = sorted(zip(labels, map(float, shares), strict=True), key=lambda pair: -pair[1])
    return {"image": str(image), "answer": ranked[0][0], "probabilities": dict(ranked)}
