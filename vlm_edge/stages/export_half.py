"""Half precision: exported graphs in float16 or bfloat16, but for what samples show to need float32.

The float32 pipeline runs on calibration samples where a recipe names data, else on random images and texts, and every
component's runs are kept. Inputs and outputs stay float32: numpy knows no bfloat16, feeds and checks are what they
were, and an engine casts its inputs as fast as we could.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlm_edge.backends.compiling import reference_engine
from vlm_edge.core.stage import StageWork, TaskSpec
from vlm_edge.data import load_dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.passes.half_precision import HALVES, ROUNDING, HalfPrecision
from vlm_edge.graphs.passes.prepare import NameNodes
from vlm_edge.machine import usable_cpus
from vlm_edge.processing.manifest import Component, PipelineManifest
from vlm_edge.quantization.calibration import Feed, Feeds
from vlm_edge.quantization.half_fit import TOLERANCE, HalfFit
from vlm_edge.quantizers.affine import agreement
from vlm_edge.stages.compile_references import reference_runs
from vlm_edge.stages.export_check import trim_heap
from vlm_edge.stages.export_graph import check_graph
from vlm_edge.stages.quantize_capture import capture_inputs

MIN_COSINE = 0.999
"""Of a component's outputs with its float32 graph's. Below it fewer nodes are 16-bit."""
STRICTER = (1.0, 0.5, 0.25, 0.125)
"""Parts of :data:`vlm_edge.quantization.half_fit.TOLERANCE` that are tried, one after the other."""
ANSWER_ROUNDINGS = 64.0
"""Roundings that the composed outputs may differ by from the model's, relative to the largest."""
RUNS = 24
"""Runs of a component that are looked at, spread over all of them: a decoder makes one for each token."""


@dataclass(frozen=True)
class HalfRuns:
    """One component's feeds: to measure its nodes on, and, with float32 outputs, to check its graph on.

    Both can be gone through again and again.
    """

    measured: Iterable[Feed]
    checked: Iterable[tuple[Feed, Feed]]


def answer_tolerance(dtype: str) -> float:
    """Largest difference of 16-bit pipelines' outputs from the model's, relative to the largest value."""
    return ANSWER_ROUNDINGS * ROUNDING[HALVES[dtype]]


def random_runs(folder: Path, manifest: PipelineManifest, work: StageWork) -> dict[str, HalfRuns]:
    """Every component's runs on random images and texts."""
    runs = reference_runs(folder, manifest, usable_cpus(), work.seed, work.scratch)
    return {name: HalfRuns([feed for feed, _ in each], each) for name, each in runs.items()}


def task_runs(
    folder: Path, manifest: PipelineManifest, task: TaskSpec, samples: int, work: StageWork
) -> dict[str, HalfRuns]:
    """Every component's runs on a task's calibration samples."""
    dataset = load_dataset(task.data, "calibration", limit=samples)
    found = capture_inputs(folder, manifest, dataset, work.scratch / "runs", usable_cpus(), work.progress).components
    return {
        name: HalfRuns(_Some(each.calibration), _Some(each.held_out, each.references)) for name, each in found.items()
    }


def write_half(
    dtype: str, folder: Path, manifest: PipelineManifest, runs: Mapping[str, HalfRuns], work: StageWork
) -> tuple[Path, PipelineManifest]:
    """Write the float32 graphs of ``folder`` in ``dtype`` to another folder, in ``work.scratch``; it and its manifest.

    ``work.facts["half"]`` holds each component's worst cosine, and the nodes that are float32 with their reasons.

    Raises:
        VlmEdgeError: a component's outputs stray from the float32 graph's.
    """
    out = work.scratch / dtype
    out.mkdir()
    facts: dict[str, Any] = {"dtype": dtype, "components": {}}
    with work.progress.bar(dtype, len(manifest.components)) as ticker:
        for name, component in manifest.components.items():
            facts["components"][name] = _write(name, component, dtype, folder, out, runs[name])
            trim_heap()
            ticker.advance(note=name)
    work.facts["half"] = facts
    return out, manifest.model_copy(update={"precision": dict.fromkeys(manifest.components, dtype)})


def _write(name: str, component: Component, dtype: str, folder: Path, out: Path, runs: HalfRuns) -> dict[str, Any]:
    """Write one component's graph with as many 16-bit nodes as agree with its float32 graph; its facts."""
    floating = load_graph(folder / component.file)
    NameNodes()(floating)
    fit = HalfFit(floating, HALVES[dtype], runs.measured, usable_cpus())
    path = out / component.file
    for part in STRICTER:
        kept = fit.kept(part * TOLERANCE)
        model = floating.clone()
        HalfPrecision(HALVES[dtype], frozenset(kept))(model)
        save_graph(model, path)
        check_graph(path)
        engine = reference_engine(path, component, usable_cpus(), {"memory": "small"})
        found = agreement((outputs, engine.infer(feed)) for feed, outputs in runs.checked)
        worst = min(found, key=lambda output: found[output].cosine)
        if found[worst].cosine >= MIN_COSINE:
            return {"cosine": round(found[worst].cosine, 7), "output": worst, "nodes": len(fit.nodes), "float32": kept}
    raise VlmEdgeError(
        f"export: {name}: in {dtype} its output {worst} strays from the float32 graph's: cosine "
        f"{found[worst].cosine:.5f}, and at least {MIN_COSINE} is needed",
        f"export with dtype: float32 or {'bfloat16' if dtype == 'float16' else 'float16'}",
    )


class _Some:
    """At most :data:`RUNS` of a component's captured runs, spread over all of them, one in memory at a time: of one
    file its dictionaries, of more files tuples of them."""

    def __init__(self, *files: Feeds) -> None:
        self._files = files

    def __iter__(self) -> Iterator[Any]:
        runs = self._files[0] if len(self._files) == 1 else zip(*self._files, strict=True)
        return islice(runs, 0, None, max(1, -(-len(self._files[0]) // RUNS)))
