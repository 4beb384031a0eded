"""Feeds for `explain`: inputs of a component in a pipeline, or a file of arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from vlm_edge.backends.base import Feed
from vlm_edge.core.stage import TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.macs import recorded_engines
from vlm_edge.evaluation.queries import draw_samples, queries_of, read_images
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.runtime.capabilities import Batch
from vlm_edge.runtime.pipeline import build_pipeline

MORE_TOKENS = 3
"""Tokens to decode, so that the last step has a past."""


def pipeline_feeds(folder: Path, manifest: PipelineManifest, task: TaskSpec | None, threads: int) -> dict[str, Feed]:
    """Inputs of each component's last call while the pipeline answers one query: a decoder's is a step with a past.

    With ``task`` the query is the first readable one of its test split, else noise in the manifest's size with a few
    words. A component that the query doesn't use is left out.

    Raises:
        VlmEdgeError: the pipeline can't be loaded, or no image of the task can be read.
    """
    engines, feeds = recorded_engines(folder, manifest, threads)
    pipeline = build_pipeline(manifest, engines, folder)
    if task is not None:
        samples = draw_samples(task, 8, seed=0)
        queries_of(pipeline, read_images(samples)[:1], samples)[0]()
    else:
        size = (manifest.image.height, manifest.image.width, 3)
        image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        pipeline.dry_run(Batch([image], ["what is in the image"], MORE_TOKENS))
    return {name: each[-1] for name, each in feeds.items() if each}


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
        raise VlmEdgeError(f"{path}: it holds objects that are no arrays of numbers", hint) from error
