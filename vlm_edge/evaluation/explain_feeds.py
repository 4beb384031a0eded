"""What a graph is fed while its time is taken: true inputs of the pipeline, or arrays of the right shapes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.core.stage import TaskSpec
from vlm_edge.engines.base import Array
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.macs import Recorder
from vlm_edge.evaluation.queries import draw_samples, queries_of, read_images
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.runtime.pipeline import build_pipeline, load_engines

USUAL_TOKENS = 16
"""Length of a text whose length is free, where nothing says how long it is."""
MORE_TOKENS = 3
"""Tokens that are decoded: the last step has a past."""

Feed = dict[str, Array]


def pipeline_feeds(folder: Path, manifest: PipelineManifest, task: TaskSpec | None, threads: int) -> dict[str, Feed]:
    """Component -> what it was fed last while the pipeline answered one query: a decoder's is a step with a past.

    With ``task`` the query is the first readable one of its test split, else noise in the manifest's size with a few
    words. A component that the query doesn't use is left out.

    Raises:
        VlmEdgeError: the pipeline can't be loaded, or no image of the task can be read.
    """
    recorders = {name: Recorder(engine) for name, engine in load_engines(folder, manifest, threads=threads).items()}
    pipeline = build_pipeline(manifest, recorders, folder)
    if task is not None:
        samples = draw_samples(task, 8, seed=0)
        queries_of(pipeline, read_images(samples)[:1], samples)[0]()
    else:
        size = (manifest.image.height, manifest.image.width, 3)
        image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        pipeline.rehearse([image], ["what is in the image"], max_new_tokens=MORE_TOKENS)
    return {name: recorder.feeds[-1] for name, recorder in recorders.items() if recorder.feeds}


def read_feed(path: Path) -> Feed:
    """Arrays of an ``.npz`` file by their names.

    Raises:
        VlmEdgeError: it is no such file.
    """
    hint = "write it with numpy.savez(path, INPUT=array)"
    if not zipfile.is_zipfile(path):
        raise VlmEdgeError(f"{path}: no .npz file", hint)
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except ValueError as error:
        raise VlmEdgeError(f"{path}: it holds something else than arrays of numbers", hint) from error


def generated_feed(inputs: Mapping[str, tuple[Any, tuple[int | str | None, ...]]], dims: Mapping[str, int]) -> Feed:
    """Arrays of the inputs' types and shapes: normal numbers, ones for integers and for what is true or false.

    A dimension without a number takes it from ``dims`` by its name. Where it is not there, the first one (the batch)
    is 1, and so is each that counts images; ``past + new`` is the sum of both; any other is :data:`USUAL_TOKENS`.

    Args:
        inputs: name -> numpy type and shape.
        dims: sizes of named dimensions.

    Raises:
        VlmEdgeError: a name in ``dims`` is no dimension of the inputs.
    """
    named = {dim for _, shape in inputs.values() for dim in shape if isinstance(dim, str)}
    if unknown := sorted(set(dims) - named):
        raise VlmEdgeError(
            f"--dim {unknown[0]}: no input has a dimension of that name",
            f"free dimensions: {', '.join(sorted(named)) or 'none'}",
        )
    generator = np.random.default_rng(0)
    feed: Feed = {}
    for name, (dtype, shape) in inputs.items():
        sizes = [_size(dim, place, dims) for place, dim in enumerate(shape)]
        if np.issubdtype(dtype, np.floating):
            feed[name] = generator.normal(size=sizes).astype(dtype)
        else:
            feed[name] = np.ones(sizes, dtype)
    return feed


def _size(dim: int | str | None, place: int, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    name = dim or ""
    if name in dims:
        return dims[name]
    if name.count(" + ") == 1:
        return sum(_size(part, place, dims) for part in name.split(" + "))
    return 1 if place == 0 or "image" in name else USUAL_TOKENS
