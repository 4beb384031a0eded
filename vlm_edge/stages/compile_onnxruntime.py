"""ONNX Runtime engines: ONNX files that its session loads fastest and in the fewest bytes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from vlm_edge.engines.base import Engine, Feed
from vlm_edge.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeOptions, session_options
from vlm_edge.numerics.attention_fusion import Attention, find_attentions, fitted, fuse_attentions, operands
from vlm_edge.numerics.integer_forms import Form, with_forms
from vlm_edge.numerics.qdq_graph import copied, save_graph
from vlm_edge.numerics.slim_graph import slim
from vlm_edge.processing.manifest import Component
from vlm_edge.stages.compile_check import ReferenceEngine
from vlm_edge.stages.compile_tune import MARGIN, Load, Tuner, race

OPTIONS: dict[str, str | int | float | bool] = {"graph_optimization": "all", "spinning": "during_run"}
"""The graph is optimized when it is loaded: doing it beforehand would write int8 weights out as float32."""

WORK_PER_THREAD = 32_000_000
"""Multiply-adds at batch 1 that are worth one more thread: below, waking it takes what it saves."""

_PRODUCTS = {
    "MatMul": 0, "FusedMatMul": 0, "Gemm": 0, "MatMulInteger": 0, "MatMulIntegerToFloat": 0,
    "DynamicQuantizeMatMul": 0, "QLinearMatMul": 0, "QGemm": 0, "MatMulNBits": 0,
    "Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "QLinearMatMulIntegerToFloat": 0,
}  # fmt: skip
"""Operators that multiply, and the place among their inputs of what tells how many products each output adds up:
the left matrix's last dimension, or the convolution's weight (out, in / groups, kernel ...)."""


def compile_component(
    source: Path,
    target: Path,
    component: Component,
    reference: ReferenceEngine,
    threads: int,
    scratch: Path,
    *,
    full: bool,
    tune_seconds: float,
    smallest_shared: int = 0,
) -> tuple[Component, dict[str, Any]]:
    """Write one component for onnxruntime; its row in the manifest, and facts.

    Without ``full`` the graph's operators stay as they are. With it attention is fused, the number of threads fits the
    work, and integer layers take the form that is fastest here, which is searched for as long as ``tune_seconds``.
    ``smallest_shared`` as in :func:`vlm_edge.numerics.slim_graph.slim`.
    """
    model = onnx.load(source)
    facts: dict[str, Any] = {}
    row = component.model_copy(update={"file": target.name})
    if full:
        load = _loader(row, scratch) if tune_seconds else None
        model, facts = _with_fused_attention(model, reference, scratch, load)
        facts |= threads_worth(source, reference.runs[0][0], threads, scratch)
        row = row.model_copy(update={"threads": facts["threads"]})
        if tune_seconds:
            forms, found = _tuned(model, row, reference, scratch, tune_seconds)
            facts |= {"tuned": found} if found else {}
            if forms:
                model = with_forms(model, forms)
                _refer_to(onnx.load(source), forms, row, reference, scratch)
    model = slim(model, smallest_shared=smallest_shared)
    save_graph(model, target)
    facts["nodes"] = len(model.graph.node)
    return row, facts


def _tuned(
    model: onnx.ModelProto, row: Component, reference: ReferenceEngine, scratch: Path, seconds: float
) -> tuple[dict[str, Form], dict[str, Any]]:
    """The forms of integer layers that ran fastest on the runs at batch 1, and facts."""
    feeds = [feed for feed, _ in reference.single]

    def shapes(names: list[str]) -> dict[str, tuple[int, ...]]:
        return tensor_shapes(model, names, feeds[0], scratch)

    threaded = _loader(row, scratch, row.threads) if row.threads and row.threads > 1 else None
    tuner = Tuner(model, feeds, _loader(row, scratch), shapes, seconds, threaded)
    facts = tuner.run()
    return tuner.forms, facts


def _loader(row: Component, scratch: Path, threads: int = 1) -> Load:
    """Makes engines of graphs, through a file that is gone again."""
    folder = scratch / "tune"

    def load(candidate: onnx.ModelProto) -> Engine:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        save_graph(candidate, folder / row.file)
        engine = OnnxRuntimeEngine(folder / row.file, row, threads=threads, options=OPTIONS)
        shutil.rmtree(folder)
        return engine

    return load


def _refer_to(
    model: onnx.ModelProto, forms: Mapping[str, Form], row: Component, reference: ReferenceEngine, scratch: Path
) -> None:
    """Make ``model`` in these forms what the engine is held against: other forms round in other places."""
    path = scratch / "forms" / row.file
    path.parent.mkdir(exist_ok=True)
    save_graph(with_forms(model, forms), path)
    options = {"graph_optimization": "disabled"}
    engine = OnnxRuntimeEngine(path, row, threads=row.threads or 1, options=options)
    reference.runs = [(feed, engine.infer(feed)) for feed, _ in reference.runs]
    shutil.rmtree(path.parent)


def _with_fused_attention(
    model: onnx.ModelProto, reference: ReferenceEngine, scratch: Path, load: Load | None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model with attentions fused whose shapes prove in a run that they are ones, and facts.

    With ``load``, those of one shape are left as they were where they ran faster so: the operator is slow on heads
    whose size is no multiple of 16 (MobileViT's first transformer: 3 times the time of its parts).
    """
    found = find_attentions(model)
    names = sorted({name for attention in found for name in operands(attention)})
    shapes = tensor_shapes(model, names, reference.runs[-1][0], scratch) if names else {}
    proven = [match for match in (fitted(attention, shapes) for attention in found) if match is not None]
    fused = fuse_attentions(model, proven)
    if load is not None and proven:
        groups: dict[Any, list[Attention]] = {}
        for attention in proven:
            groups.setdefault(tuple(shapes[name] for name in operands(attention)), []).append(attention)
        feeds = [feed for feed, _ in reference.single]
        best = load(fused)
        for group in groups.values():
            fewer = [attention for attention in proven if attention not in group]
            without = fuse_attentions(model, fewer)
            candidate = load(without)
            time, other = race((best, candidate), feeds)
            if other < time * (1 - MARGIN):
                proven, fused, best = fewer, without, candidate
    return fused, {"attentions_found": len(found), "attentions_fused": len(proven)}


def tensor_shapes(model: onnx.ModelProto, names: list[str], feed: Feed, scratch: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of inner tensors in one run, by running the graph with them as outputs from a file in ``scratch``."""
    listening = copied(model)
    there = {value.name for value in listening.graph.output}
    inner = [name for name in names if name not in there and name not in feed]
    listening.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    folder = scratch / "shapes"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    save_graph(listening, folder / "graph.onnx")
    options = session_options(1, OnnxRuntimeOptions(graph_optimization="disabled"))
    session = ort.InferenceSession(str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"])
    asked = [name for name in names if name not in feed]
    shapes = {name: value.shape for name, value in zip(asked, session.run(asked, feed), strict=True)}
    shutil.rmtree(folder)
    return shapes | {name: feed[name].shape for name in names if name in feed}


def threads_worth(path: Path, feed: Feed, threads: int, scratch: Path) -> dict[str, int]:
    """A run's ``multiply_adds``, and how many ``threads`` they are worth, of at most so many."""
    total = multiply_adds(path, feed, scratch)
    return {"multiply_adds": total, "threads": max(1, min(threads, math.ceil(total / WORK_PER_THREAD)))}


def multiply_adds(path: Path, feed: Feed, scratch: Path) -> int:
    """Multiply-adds of one run's matrix products and convolutions, from the shapes in onnxruntime's profile."""
    options = session_options(1, OnnxRuntimeOptions(graph_optimization="disabled"))
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, feed)
    profile = Path(session.end_profiling())
    events = json.loads(profile.read_text(encoding="utf-8"))
    profile.unlink()
    total = 0
    for event in events:
        arguments = event.get("args", {})
        if arguments.get("op_name") in _PRODUCTS and "output_type_shape" in arguments:
            total += _multiply_adds_of(arguments)
    return total


def _multiply_adds_of(arguments: dict[str, Any]) -> int:
    inputs: list[list[int]] = [next(iter(entry.values())) for entry in arguments["input_type_shape"]]
    output: list[int] = next(iter(arguments["output_type_shape"][0].values()))
    shape = inputs[_PRODUCTS[arguments["op_name"]]]
    added = shape[-1] if "Conv" not in arguments["op_name"] else math.prod(shape[1:])
    return math.prod(output) * added
