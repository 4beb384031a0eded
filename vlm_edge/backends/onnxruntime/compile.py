"""Compile for ONNX Runtime: ONNX files that its session loads fastest and in the fewest bytes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vlm_edge.backends import BACKENDS
from vlm_edge.backends.base import Engine, Feed
from vlm_edge.backends.compiling import MARGIN, CompileJob, race
from vlm_edge.backends.onnxruntime.engine import OnnxRuntimeEngine
from vlm_edge.backends.onnxruntime.tune import Tuner, alike
from vlm_edge.backends.reference import AS_IS
from vlm_edge.graphs.attention import find_attentions, fitted, operands
from vlm_edge.graphs.chain import feeds_of, sample_of
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.ops import Shape
from vlm_edge.graphs.passes.fuse_attention import FuseAttentions
from vlm_edge.graphs.passes.integer_forms import ChangeForms, Form, integer_layers
from vlm_edge.graphs.shapes import ShapeSession
from vlm_edge.processing.manifest import Component, TensorSpec

FEWEST_ROWS = 32
"""Below, a layer's time is that of reading its weight, and a part whose weights fit the caches doesn't stand for the
whole graph."""


def compile_component(job: CompileJob) -> tuple[Component, dict[str, Any]]:
    """Write one component for onnxruntime; its row in the manifest, and facts.

    Without ``full`` the graph's operators stay as they are. With it attention is fused, the number of threads fits the
    work, and integer layers take the form that is fastest here, which is searched for as long as ``tune_seconds``.
    """
    model = load_graph(job.graph)
    if not job.full:
        return job.write_slim(model, job.out)
    model, facts = _with_fused_attention(model, job)
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
    layers = integer_layers(model)
    if not layers:
        return {}, {}
    shapes = ShapeSession(model, [layer.output for layer in layers]).run(job.reference.single_feeds()[-1])
    groups = alike(layers, shapes)
    rows = min((math.prod(shapes[layer.output]) // layer.outputs for group in groups for layer in group), default=0)
    sampled = [[layer.output for layer in group] for group in groups] if rows >= FEWEST_ROWS else []
    course = _course(job, model, sampled, lambda part: {layer.output for layer in integer_layers(part)})
    threaded = partial(course.load, threads=threads) if threads > 1 else None
    tuner = Tuner(layers, groups, course.model, course.feeds, course.load, job.tune_seconds, threaded)
    facts = tuner.run()
    return tuner.forms, facts


@dataclass(frozen=True)
class Course:
    """A graph to race, or a part of it that stands for it, with its row and feeds at batch 1."""

    model: ir.Model
    row: Component
    feeds: Sequence[Feed]
    folder: Path

    def load(self, candidate: ir.Model, threads: int = 1) -> Engine:
        """The engine of another form of the model, through a file that is gone again."""
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run that was killed
        self.folder.mkdir()
        path = self.folder / "candidate.onnx"
        save_graph(candidate, path)
        engine = OnnxRuntimeEngine(path, self.row, threads=threads, options=BACKENDS["onnxruntime"].options)
        shutil.rmtree(self.folder)
        return engine


def _course(
    job: CompileJob, model: ir.Model, groups: Sequence[Collection[str]], find: Callable[[ir.Model], Collection[str]]
) -> Course:
    """The shortest part of a graph that makes some values of every group; else the whole graph.

    Args:
        find: names of the values that the pass to be raced applies to; the part must show all of its own to be taken.
    """
    feeds: Sequence[Feed] = job.reference.single_feeds()
    folder = job.scratch / "tune"
    part = sample_of(model, groups)
    made = {str(value.name) for node in part.graph for value in node.outputs} if part is not None else set()
    if part is None or not made.intersection(find(model)) <= set(find(part)):
        return Course(model, job.component, feeds, folder)
    feeds = feeds_of(part, model, feeds)
    inputs = {
        name: TensorSpec.model_validate({"dtype": str(value.dtype), "shape": value.shape})
        for name, value in feeds[0].items()
    }
    outputs = {str(value.name): TensorSpec(dtype="float32", shape=()) for value in part.graph.outputs}
    return Course(part, Component(file=job.component.file, inputs=inputs, outputs=outputs), feeds, folder)


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


def _with_fused_attention(model: ir.Model, job: CompileJob) -> tuple[ir.Model, dict[str, Any]]:
    """The model with attentions fused whose shapes prove in a run that they are ones, and facts.

    Where the job has time for a search, those of one shape are left as they were where they ran faster so: the operator
    is slow on heads whose size is no multiple of 16 (MobileViT's first transformer: 3 times the time of its parts).
    """
    found = find_attentions(model)
    names = sorted({str(value.name) for attention in found for value in operands(attention)})
    shapes = ShapeSession(model, names).run(job.reference[-1][0]) if names else {}
    groups: dict[Any, set[str]] = {}
    for attention in found:
        if fitted(attention, shapes) is not None:
            key = tuple(shapes[str(value.name)] for value in operands(attention))
            groups.setdefault(key, set()).add(str(attention.output.name))
    proven = set().union(*groups.values())
    if job.tune_seconds and proven:
        course = _course(job, model, list(groups.values()), _attended)
        best = course.load(_fused(course.model, proven, shapes))
        for group in groups.values():
            candidate = course.load(_fused(course.model, proven - group, shapes))
            time, other = race((best, candidate), course.feeds)
            if other < time * (1 - MARGIN):
                proven, best = proven - group, candidate
    return _fused(model, proven, shapes), {"attentions_found": len(found), "attentions_fused": len(proven)}


def _attended(model: ir.Model) -> set[str]:
    return {str(attention.output.name) for attention in find_attentions(model)}


def _fused(model: ir.Model, outputs: Collection[str], shapes: Mapping[str, Shape]) -> ir.Model:
    """A copy in which the attentions that give these are fused."""
    copy = model.clone()
    found = [fitted(each, shapes) for each in find_attentions(copy) if each.output.name in outputs]
    FuseAttentions([attention for attention in found if attention is not None])(copy)
    return copy
