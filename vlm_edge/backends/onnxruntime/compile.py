"""Compile for ONNX Runtime: ONNX files that its session loads fastest and in the fewest bytes."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vlm_edge.backends import BACKENDS
from vlm_edge.backends.base import Engine
from vlm_edge.backends.compiling import MARGIN, CompileJob, race
from vlm_edge.backends.onnxruntime.engine import OnnxRuntimeEngine
from vlm_edge.backends.onnxruntime.tune import Load, Tuner
from vlm_edge.backends.reference import AS_IS, ReferenceRuns
from vlm_edge.graphs.attention import find_attentions, fitted, operands
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.ops import Shape
from vlm_edge.graphs.passes.fuse_attention import FuseAttentions
from vlm_edge.graphs.passes.integer_forms import ChangeForms, Form
from vlm_edge.graphs.shapes import ShapeSession
from vlm_edge.processing.manifest import Component


def compile_component(job: CompileJob) -> tuple[Component, dict[str, Any]]:
    """Write one component for onnxruntime; its row in the manifest, and facts.

    Without ``full`` the graph's operators stay as they are. With it attention is fused, the number of threads fits the
    work, and integer layers take the form that is fastest here, which is searched for as long as ``tune_seconds``.
    """
    model = load_graph(job.graph)
    if not job.full:
        return job.write_slim(model, job.out)
    load = _loader(job.component, job.scratch) if job.tune_seconds else None
    model, facts = _with_fused_attention(model, job.reference, load)
    facts |= job.threads_worth()
    threads: int = facts["threads"]
    if job.tune_seconds:
        forms, found = _tuned(model, job, threads)
        facts |= {"tuned": found} if found else {}
        if forms:
            ChangeForms(forms)(model)
            refer_to_forms(job, forms, threads)
    row, written = job.write_slim(model, job.out)
    return row.model_copy(update={"threads": threads}), facts | written


def _tuned(model: ir.Model, job: CompileJob, threads: int) -> tuple[dict[str, Form], dict[str, Any]]:
    """The forms of integer layers that ran fastest on the runs at batch 1, and facts."""
    feeds = job.reference.single_feeds()

    def shapes(names: list[str]) -> dict[str, Shape]:
        return ShapeSession(model, names).run(feeds[0])

    threaded = _loader(job.component, job.scratch, threads) if threads > 1 else None
    tuner = Tuner(model, feeds, _loader(job.component, job.scratch), shapes, job.tune_seconds, threaded)
    facts = tuner.run()
    return tuner.forms, facts


def _loader(row: Component, scratch: Path, threads: int = 1) -> Load:
    """Makes engines of graphs, through a file that is gone again."""
    folder = scratch / "tune"
    options = BACKENDS["onnxruntime"].options

    def load(candidate: ir.Model) -> Engine:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        save_graph(candidate, folder / "candidate.onnx")
        engine = OnnxRuntimeEngine(folder / "candidate.onnx", row, threads=threads, options=options)
        shutil.rmtree(folder)
        return engine

    return load


def refer_to_forms(job: CompileJob, forms: Mapping[str, Form], threads: int) -> None:
    """Make the graph in these forms what the engine is held against: other forms round in other places."""
    path = job.scratch / "forms" / job.graph.name
    path.parent.mkdir(exist_ok=True)
    model = load_graph(job.graph)
    ChangeForms(forms)(model)
    save_graph(model, path)
    engine = OnnxRuntimeEngine(path, job.component, threads=threads, options=AS_IS)
    for position, (feed, _) in enumerate(job.reference):
        job.reference[position] = feed, engine.infer(feed)
    shutil.rmtree(path.parent)


def _with_fused_attention(
    model: ir.Model, reference: ReferenceRuns, load: Load | None
) -> tuple[ir.Model, dict[str, Any]]:
    """The model with attentions fused whose shapes prove in a run that they are ones, and facts.

    With ``load``, those of one shape are left as they were where they ran faster so: the operator is slow on heads
    whose size is no multiple of 16 (MobileViT's first transformer: 3 times the time of its parts).
    """
    found = find_attentions(model)
    names = sorted({str(value.name) for attention in found for value in operands(attention)})
    shapes = ShapeSession(model, names).run(reference[-1][0]) if names else {}
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
