"""Quantize: every component's weights to INT8, and its linear layers to integer arithmetic that the engine fuses.

The float pipeline runs on the task's own calibration samples, and ranges, smoothing and corrections come from what its
tensors hold; none of that depends on the target, and a store keeps it for the next one. The graph is then written in
the target's form. Each component is checked on held-out samples against its float graph; one that strays gets a more
careful variant, then the fewest layers in floating point, then a safer scheme. With a bound on the task's metric the
whole pipeline is measured as well, on samples that are neither calibrated on nor tested on, and more layers go back to
floating point until the bound is met.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import Progress, StageInputs, StageSpec, StageWork
from vlm_edge.core.store import key_of
from vlm_edge.facts import QuantizeFacts
from vlm_edge.stages.quantize_attempt import prepare, quantize_graph
from vlm_edge.stages.quantize_component import ComponentQuantizer, Quantization
from vlm_edge.stages.quantize_config import (
    QuantizeConfig,
    Scheme,
    faults,
    metric_samples,
    resolve_kept,
    resolve_schemes,
    splits,
)

if TYPE_CHECKING:
    from vlm_edge.processing.manifest import PipelineManifest
    from vlm_edge.quantization.calibration import Feed, Feeds

__all__ = ["SPEC", "QuantizeConfig", "quantize_graph", "resolve_schemes", "run"]

STATISTICS_VERSION = 1
"""Raised whenever the same graph and data would give other statistics, or their file another form."""
STATISTICS_PACKAGES = ("numpy", "onnx", "onnxruntime")


def run(config: QuantizeConfig, inputs: StageInputs, work: StageWork) -> None:
    """Write the quantized graphs and the manifest; ``work.facts`` holds each component's scheme, size and errors."""
    from vlm_edge.backends.lowering import lowering_of, resolve_isa
    from vlm_edge.data import load_dataset
    from vlm_edge.processing.manifest import copy_side_files, read_manifest, write_manifest
    from vlm_edge.quantization.calibration import Calibration
    from vlm_edge.stages.quantize_capture import capture_inputs
    from vlm_edge.stages.quantize_task import TaskJudge, fall_back, rank_by_task

    assert inputs.task is not None
    assert inputs.target is not None
    source, target = inputs.source.path, inputs.target
    manifest = read_manifest(source)
    schemes = resolve_schemes(config, manifest, target.engine)
    kept = _kept(config, schemes, source, manifest)
    isa = resolve_isa(target.isa, target.engine)
    lowering = lowering_of(target.engine, isa)
    shared = Quantization(source, work.out, lowering, config, target.threads, work.progress)
    dataset = load_dataset(inputs.task.data, "calibration", limit=config.samples)
    drawn = metric_samples(config, inputs.task, work.metric)
    scratch = work.scratch / "calibration"
    capture = capture_inputs(source, manifest, dataset, scratch, target.threads, work.progress)
    work.facts.update(isa=isa, calibration_samples=capture.samples, held_out_samples=capture.held_out)
    if capture.skipped:
        work.facts["skipped_images"] = capture.skipped
    copy_side_files(source, work.out, manifest)
    facts: dict[str, Any] = {}
    quantizers: dict[str, ComponentQuantizer] = {}
    for name, component in manifest.components.items():
        captured = capture.components[name]
        feeds = _Watched(captured.calibration, f"calibrate {name}", work.progress)
        key = statistics_key(inputs.source.digest, dataset.digest, name)
        path = work.cache / f"{key}.npz" if work.cache is not None else None
        calibration = Calibration(feeds, path=path, threads=target.threads)
        left = kept.get(name, frozenset())
        quantizer = ComponentQuantizer(shared, name, component, captured, calibration, left)
        with work.progress.bar(f"quantize {name}", None):
            quantizer.choose(schemes[name])
        if drawn is None:
            facts[name] = quantizer.facts()
        else:  # all of them stay in memory: any may have to change
            quantizers[name] = quantizer
    if drawn is not None:
        judge = TaskJudge(drawn, source, work.out, manifest, target.threads, work.seed, work.progress)
        if config.sensitivity == "task":
            rank_by_task(quantizers, judge)
        work.facts["metric_samples"] = judge.as_facts()
        if config.max_drop_pt is not None:
            work.facts["task_drop"] = fall_back(quantizers, judge, config.max_drop_pt)
        facts = {name: quantizer.facts() for name, quantizer in quantizers.items()}
    work.facts["components"] = facts
    precision = {name: fact["scheme"] for name, fact in facts.items()}
    write_manifest(work.out, manifest.model_copy(update={"precision": precision}))
    shutil.rmtree(scratch)


def statistics_key(graphs: str, data: str, component: str) -> str:
    """The key of a component's statistics: its float graph, the samples, and the packages that run it; no target.

    Args:
        graphs: digest of the folder of float graphs.
        data: digest of the calibration samples that were drawn.
    """
    return key_of(
        {
            "statistics": STATISTICS_VERSION,
            "graphs": graphs,
            "component": component,
            "data": data,
            "packages": {name: metadata.version(name) for name in STATISTICS_PACKAGES},
        }
    )


def _kept(
    config: QuantizeConfig, schemes: dict[str, Scheme], source: Path, manifest: PipelineManifest
) -> dict[str, frozenset[str]]:
    """The nodes that the recipe leaves float, by component."""
    if not config.keep_float:
        return {}
    from vlm_edge.graphs.files import load_graph
    from vlm_edge.graphs.layers import layer_names

    layers = {}
    for name, component in manifest.components.items():
        if schemes[name] != "none":
            layers[name] = layer_names(prepare(load_graph(source / component.file)))
    return resolve_kept(config.keep_float, layers)


class _Watched:
    """Feeds that draw a progress bar each time they are gone through."""

    def __init__(self, feeds: Feeds, label: str, progress: Progress) -> None:
        self._feeds = feeds
        self._label = label
        self._progress = progress

    def __iter__(self) -> Iterator[Feed]:
        with self._progress.bar(self._label, len(self._feeds)) as ticker:
            for feed in self._feeds:
                yield feed
                ticker.advance()

    def __len__(self) -> int:
        return len(self._feeds)


SPEC = StageSpec(
    name="quantize",
    version=7,
    config=QuantizeConfig,
    check=faults,
    splits=splits,
    source=ArtifactKind.GRAPHS,
    output=ArtifactKind.GRAPHS,
    run=run,
    facts=QuantizeFacts,
    packages=("nncf", "onnx", "onnxruntime", "numpy"),
    reads=frozenset({"task", "target", "metric"}),
    host_bound=True,
    summary="Quantize exported graphs: INT8 weights and integer linear layers, calibrated on the task's own samples.",
)
