"""ONNX Runtime engines: ONNX files that its session loads fastest and in the fewest bytes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vlm_edge.engines.base import Engine, Feed
from vlm_edge.engines.onnxruntime import OnnxRuntimeEngine
from vlm_edge.graphs.attention import find_attentions, fitted, operands
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.ops import Shape, UncountedOperator
from vlm_edge.graphs.passes.fuse_attention import FuseAttentions
from vlm_edge.graphs.passes.integer_forms import ChangeForms, Form
from vlm_edge.graphs.passes.slim import Slim
from vlm_edge.graphs.shapes import ShapeSession, multiply_adds
from vlm_edge.processing.manifest import Component
from vlm_edge.stages.compile_check import ReferenceEngine
from vlm_edge.stages.compile_tune import MARGIN, Load, Tuner, race

OPTIONS: dict[str, str | int | float | bool] = {"graph_optimization": "all", "spinning": "during_run"}
"""The graph is optimized when it is loaded: doing it beforehand would write int8 weights out as float32."""

WORK_PER_THREAD = 32_000_000
"""Multiply-adds at batch 1 that are worth one more thread: below, waking it takes what it saves."""


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
    ``smallest_shared`` as in :class:`vlm_edge.graphs.passes.slim.Slim`.
    """
    model = load_graph(source)
    facts: dict[str, Any] = {}
    row = component.model_copy(update={"file": target.name})
    if full:
        load = _loader(row, scratch) if tune_seconds else None
        model, facts = _with_fused_attention(model, reference, load)
        facts |= threads_worth(source, reference.runs[0][0], threads)
        row = row.model_copy(update={"threads": facts["threads"]})
        if tune_seconds:
            forms, found = _tuned(model, row, reference, scratch, tune_seconds)
            facts |= {"tuned": found} if found else {}
            if forms:
                ChangeForms(forms)(model)
                _refer_to(load_graph(source), forms, row, reference, scratch)
    Slim(smallest_shared=smallest_shared)(model)
    save_graph(model, target)
    facts["nodes"] = len(model.graph)
    return row, facts


def _tuned(
    model: ir.Model, row: Component, reference: ReferenceEngine, scratch: Path, seconds: float
) -> tuple[dict[str, Form], dict[str, Any]]:
    """The forms of integer layers that ran fastest on the runs at batch 1, and facts."""
    feeds = reference.single_feeds()

    def shapes(names: list[str]) -> dict[str, Shape]:
        return ShapeSession(model, names).run(feeds[0])

    threaded = _loader(row, scratch, row.threads) if row.threads and row.threads > 1 else None
    tuner = Tuner(model, feeds, _loader(row, scratch), shapes, seconds, threaded)
    facts = tuner.run()
    return tuner.forms, facts


def _loader(row: Component, scratch: Path, threads: int = 1) -> Load:
    """Makes engines of graphs, through a file that is gone again."""
    folder = scratch / "tune"

    def load(candidate: ir.Model) -> Engine:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        save_graph(candidate, folder / row.file)
        engine = OnnxRuntimeEngine(folder / row.file, row, threads=threads, options=OPTIONS)
        shutil.rmtree(folder)
        return engine

    return load


def _refer_to(
    model: ir.Model, forms: Mapping[str, Form], row: Component, reference: ReferenceEngine, scratch: Path
) -> None:
    """Make ``model`` in these forms what the engine is held against: other forms round in other places."""
    path = scratch / "forms" / row.file
    path.parent.mkdir(exist_ok=True)
    ChangeForms(forms)(model)
    save_graph(model, path)
    options = {"graph_optimization": "disabled"}
    engine = OnnxRuntimeEngine(path, row, threads=row.threads or 1, options=options)
    for position, (feed, _) in enumerate(reference.runs):
        reference.runs[position] = feed, engine.infer(feed)
    shutil.rmtree(path.parent)


def _with_fused_attention(
    model: ir.Model, reference: ReferenceEngine, load: Load | None
) -> tuple[ir.Model, dict[str, Any]]:
    """The model with attentions fused whose shapes prove in a run that they are ones, and facts.

    With ``load``, those of one shape are left as they were where they ran faster so: the operator is slow on heads
    whose size is no multiple of 16 (MobileViT's first transformer: 3 times the time of its parts).
    """
    found = find_attentions(model)
    names = sorted({str(value.name) for attention in found for value in operands(attention)})
    shapes = ShapeSession(model, names).run(reference.runs[-1][0]) if names else {}
    groups: dict[Any, set[int]] = {}
    for place, attention in enumerate(found):
        if fitted(attention, shapes) is not None:
            key = tuple(shapes[str(value.name)] for value in operands(attention))
            groups.setdefault(key, set()).add(place)
    proven = {place for group in groups.values() for place in group}
    fused = _fused(model, proven, shapes)
    if load is not None and proven:
        feeds = reference.single_feeds()
        best = load(fused)
        for group in groups.values():
            without = _fused(model, proven - group, shapes)
            candidate = load(without)
            time, other = race((best, candidate), feeds)
            if other < time * (1 - MARGIN):
                proven, fused, best = proven - group, without, candidate
    return fused, {"attentions_found": len(found), "attentions_fused": len(proven)}


def _fused(model: ir.Model, places: Collection[int], shapes: Mapping[str, Shape]) -> ir.Model:
    """A copy with these of its attentions fused, which are counted in the graph's order."""
    copy = model.clone()
    found = [fitted(attention, shapes) for place, attention in enumerate(find_attentions(copy)) if place in places]
    FuseAttentions([attention for attention in found if attention is not None])(copy)
    return copy


def threads_worth(path: Path, feed: Feed, threads: int) -> dict[str, int]:
    """A run's ``multiply_adds``, and how many ``threads`` they are worth, of at most so many; all where they can't be
    counted."""
    try:
        total = multiply_adds(path, [feed])
    except UncountedOperator:
        return {"threads": threads}
    return {"multiply_adds": total, "threads": max(1, min(threads, math.ceil(total / WORK_PER_THREAD)))}
