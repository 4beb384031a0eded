"""Multiply-accumulates of one query: what the engine's ONNX graphs multiply while it answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vlm_edge.backends.base import Engine, Feed, Recorder
from vlm_edge.evaluation.queries import Samples, queries_of, read_images
from vlm_edge.processing.manifest import PipelineManifest, read_manifest
from vlm_edge.runtime.pipeline import build_pipeline, load_engines


def recorded_engines(
    folder: Path, manifest: PipelineManifest, threads: int
) -> tuple[dict[str, Engine], dict[str, list[Feed]]]:
    """A folder's engines by component, and the lists in which they keep their feeds, in order.

    Raises:
        VlmEdgeError: an engine can't be loaded.
    """
    feeds: dict[str, list[Feed]] = {name: [] for name in manifest.components}

    def recorder(name: str, engine: Engine) -> Engine:
        return Recorder(engine, lambda feed, _: feeds[name].append(dict(feed)))

    engines = load_engines(folder, manifest, threads=threads)
    return {name: recorder(name, engine) for name, engine in engines.items()}, feeds


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
    engines, feeds = recorded_engines(folder, manifest, 1)
    images = sorted(read_images(samples), key=lambda pair: len(pair[1]))
    query = queries_of(build_pipeline(manifest, engines, folder), [images[len(images) // 2]], samples)[0]
    query()  # labels are embedded now
    for each in feeds.values():
        each.clear()
    query()
    from vlm_edge.graphs.ops import UncountedOperator
    from vlm_edge.graphs.shapes import multiply_adds

    total = 0
    for name, file in files.items():
        try:
            total += multiply_adds(file, feeds[name])
        except UncountedOperator:
            return None
    return total
