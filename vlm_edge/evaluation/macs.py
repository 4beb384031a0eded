"""Multiply-accumulates of one query: what the engine's ONNX graphs multiply while it answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.engines.base import Array, Engine, Feed
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.queries import Samples, queries_of, read_images
from vlm_edge.numerics.macs import Shape, UncountedOperator, multiplying_nodes, node_macs
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
    are not ONNX, the package ``onnx`` is not installed, or an operator multiplies in a way that has no formula.

    Raises:
        VlmEdgeError: the engine can't be loaded, none of the images can be read, or a graph is corrupt.
    """
    manifest = read_manifest(folder)
    files = {name: folder / component.file for name, component in manifest.components.items()}
    if importlib.util.find_spec("onnx") is None or any(file.suffix != ".onnx" for file in files.values()):
        return None
    recorders = {name: Recorder(engine) for name, engine in load_engines(folder, manifest, threads=1).items()}
    images = sorted(read_images(samples), key=lambda pair: len(pair[1]))
    query = queries_of(build_pipeline(manifest, recorders, folder), [images[len(images) // 2]], samples)[0]
    query()  # labels are embedded now
    for recorder in recorders.values():
        recorder.feeds.clear()
    query()
    try:
        return sum(graph_macs(file, recorders[name].feeds) for name, file in files.items())
    except UncountedOperator:
        return None


def graph_macs(file: Path, feeds: list[dict[str, Array]]) -> int:
    """Multiply-accumulates of one ONNX file over several runs.

    Raises:
        UncountedOperator: an operator multiplies in a way that has no formula.
        VlmEdgeError: the file is no ONNX graph.
    """
    model, static = _model(file)
    nodes = multiplying_nodes(model.graph)
    given = {each.name for each in model.graph.input}
    wanted = sorted({name for node in nodes for name in (*node.input, *node.output) if name} - static.keys() - given)
    if not nodes or not feeds:
        return 0
    session = _exposing(model, wanted, file.parent)
    total = 0
    for feed in feeds:
        values = session.run(wanted, {each.name: feed[each.name] for each in session.get_inputs()})
        named = {**feed, **dict(zip(wanted, values, strict=True))}
        shapes = static | {name: np.asarray(value).shape for name, value in named.items()}
        total += sum(node_macs(node, shapes.__getitem__) for node in nodes)
    return total


def _model(file: Path) -> tuple[Any, dict[str, Shape]]:
    """The graph with local functions inlined, its weights left where they are, and the weights' shapes."""
    import onnx
    import onnx.inliner
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise VlmEdgeError(f"{file}: not an ONNX file, or it is corrupt: {error}", "compile the model again") from error
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return model, {weight.name: tuple(weight.dims) for weight in model.graph.initializer}


def _exposing(model: Any, names: list[str], folder: Path) -> Any:
    """A session that gives out these tensors inside a graph. Nothing is rewritten, so that they are all there."""
    import onnx
    import onnxruntime as ort

    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
