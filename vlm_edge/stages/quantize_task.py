"""The task's metric as judge of a quantized pipeline: what each layer costs of it, and which ones stay float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_edge.backends import REFERENCE, load_engine
from vlm_edge.backends.base import Array, Engine, Feed
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.stage import MetricSamples, Progress
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Component, PipelineManifest
from vlm_edge.quantization.fewest import fewest
from vlm_edge.runtime.pipeline import build_pipeline
from vlm_edge.stages.quantize_layers import interval_of

if TYPE_CHECKING:
    from vlm_edge.quantization.sensitivity import SwitchedGraph
    from vlm_edge.stages.quantize_component import ComponentQuantizer

MOST_EXPLAINED = 16
"""Layers that were left float for the task's metric and are measured once more: with it alone back in INT8."""

Place = tuple[str, str]
"""Component and node name."""


@dataclass
class TaskJudge:
    """Measures pipelines of quantized components against the float one; the float outcomes are taken once."""

    drawn: MetricSamples
    source: Path
    out: Path
    manifest: PipelineManifest
    threads: int
    seed: int
    progress: Progress

    def __post_init__(self) -> None:
        self.floating = {name: self._engine(self.source, each) for name, each in self.manifest.components.items()}
        self._baseline = self._outcomes(self.floating)

    def as_facts(self) -> dict[str, Any]:
        return {"split": self.drawn.split, "images": self.drawn.images, "samples": self.drawn.samples}

    def drop(self, engines: Mapping[str, Engine]) -> Measurement:
        """The drop of a pipeline of these engines against the float one."""
        return self.drawn.drop(self._baseline, self._outcomes(engines), self.seed)

    def drop_now(self) -> Measurement:
        """The drop of the pipeline whose graphs lie in the stage's result at this moment."""
        return self.drop({name: self._engine(self.out, each) for name, each in self.manifest.components.items()})

    def _engine(self, folder: Path, component: Component) -> Engine:
        options = {"graph_optimization": "basic"}
        return load_engine(REFERENCE, folder / component.file, component, self.threads, options)

    def _outcomes(self, engines: Mapping[str, Engine]) -> Any:
        return self.drawn.outcomes(build_pipeline(self.manifest, engines, self.source), self.progress)


class SwitchedEngine:
    """A float component in which the layers of ``quantized`` are rounded."""

    name = REFERENCE

    def __init__(self, component: Component, graph: SwitchedGraph, quantized: frozenset[str]) -> None:
        self.inputs, self.outputs = component.inputs, component.outputs
        self._graph = graph
        self._quantized = quantized

    def infer(self, feed: Feed) -> dict[str, Array]:
        return self._graph.run(feed, self._quantized)


def rank_by_task(quantizers: Mapping[str, ComponentQuantizer], judge: TaskJudge) -> None:
    """Measure what each layer alone, in INT8 among float ones, costs of the task's metric: an evaluation a layer."""
    for name, quantizer in quantizers.items():
        layers = quantizer.candidates()
        if not layers:
            continue
        graph = quantizer.switched()
        for each in layers:
            alone = SwitchedEngine(quantizer.component, graph, frozenset({each.layer.node}))
            quantizer.drops[each.layer.node] = judge.drop({**judge.floating, name: alone})


def fall_back(quantizers: Mapping[str, ComponentQuantizer], judge: TaskJudge, bound: float) -> dict[str, Any]:
    """Leave the fewest layers float with which the drop's interval ends within ``bound`` points; returns the facts.

    Raises:
        VlmEdgeError: it doesn't with all layers float.
    """
    tried: dict[frozenset[Place], Measurement] = {}

    def drop(left_float: frozenset[Place]) -> Measurement:
        if left_float not in tried:
            for name, quantizer in quantizers.items():
                quantizer.leave_float(frozenset(node for component, node in left_float if component == name))
            tried[left_float] = judge.drop_now()
        return tried[left_float]

    before = drop(frozenset())
    ranked = _ranked(quantizers) if before.high > bound else {}
    found = fewest(list(ranked), lambda left_float: drop(left_float).high <= bound)
    if found is None:
        raise _unmet(drop(frozenset(ranked)), len(ranked), judge, bound)
    without = {place: drop(frozenset(found) - {place}) for place in found[:MOST_EXPLAINED]}
    for name, quantizer in quantizers.items():
        quantizer.leave_float(frozenset(node for component, node in found if component == name))
    return {
        "metric": before.metric,
        "max_drop_pt": bound,
        "before": interval_of(before),
        "after": interval_of(drop(frozenset(found))),
        "left_float": [
            ranked[place] | {"without_it": interval_of(without[place]) if place in without else None} for place in found
        ],
        "tried": [{"left_float": len(places), **interval_of(each)} for places, each in tried.items()],
    }


def _ranked(quantizers: Mapping[str, ComponentQuantizer]) -> dict[Place, dict[str, Any]]:
    """Every quantized layer of every component, the one to leave float first in front, with its facts."""
    from vlm_edge.graphs.layers import layer_names

    rows: dict[Place, dict[str, Any]] = {}
    for component, quantizer in quantizers.items():
        layers = quantizer.candidates()
        names = layer_names(quantizer.floating) if layers else {}
        for each in layers:
            node, alone = each.layer.node, quantizer.drops.get(each.layer.node)
            row: dict[str, Any] = {"component": component, "name": names[node], "sqnr_db": round(each.sqnr_db, 2)}
            rows[component, node] = row if alone is None else row | {"drop_pt": interval_of(alone)}
    order = sorted(rows, key=lambda place: (-rows[place].get("drop_pt", {}).get("value", 0.0), rows[place]["sqnr_db"]))
    return {place: rows[place] for place in order}


def _unmet(drop: Measurement, layers: int, judge: TaskJudge, bound: float) -> VlmEdgeError:
    facts = judge.as_facts()
    return VlmEdgeError(
        f"quantize.max_drop_pt: with all {layers} layers float the task's metric still drops by {drop.value:.2f} "
        f"points [{drop.low:.2f}, {drop.high:.2f}] on {facts['images']:,} images of the {facts['split']} split; "
        f"at most {bound:g} is allowed",
        "leave a whole component in floating point (components: {NAME: none}), which keeps its tables float too; "
        "raise metric_images where the interval is wide; or allow a larger drop",
    )
