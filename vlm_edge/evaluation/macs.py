"""Multiply-accumulates of one query: what the engine's ONNX graphs multiply while it answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vlm_edge.engines.base import Array, Engine, Feed
from vlm_edge.evaluation.queries import Samples, queries_of, read_images
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime.pipeline import build_pipeline, load_engines


class Recorder:
    """An engine that keeps every feed, in order."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.feeds: list[dict[str, Array]] = []

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; see :class:`vlm_edge.engines.base.Engine`."""
        self.feeds.append(dict(feed))
        return self._engine.infer(feed)


def query_macs(folder: Path, samples: Samples) -> int | None:
    """Multiply-accumulates of the query whose text is of median length, at batch 1, over all runs of all components.

    The query is answered once, and each component's graph run again on what it was fed then, to read every shape off
    the tensors. Labels that are embedded once for all queries are left out. None where it can't be counted: the graphs
    are not ONNX, the package ``onnx_ir`` is not installed, or an operator multiplies in a way that has no formula.

    Raises:
        VlmEdgeError: the engine can't be loaded, none of the images can be read, or a graph is corrupt.
    """
    manifest = read_manifest(folder)
    files = {name: folder / component.file for name, component in manifest.components.items()}
    if importlib.util.find_spec("onnx_ir") is None or any(file.suffix != ".onnx" for file in files.values()):
        return None
    recorders = {name: Recorder(engine) for name, engine in load_engines(folder, manifest, threads=1).items()}
    images = sorted(read_images(samples), key=lambda pair: len(pair[1]))
    query = queries_of(build_pipeline(manifest, recorders, folder), [images[len(images) // 2]], samples)[0]
    query()  # labels are embedded now
    for recorder in recorders.values():
        recorder.feeds.clear()
    query()
    from vlm_edge.graphs.ops import UncountedOperator
    from vlm_edge.graphs.shapes import multiply_adds

    total = 0
    for name, file in files.items():
        try:
            total += multiply_adds(file, recorders[name].feeds)
        except UncountedOperator:
            return None
    return total
