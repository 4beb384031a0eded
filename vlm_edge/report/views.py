"""Rows of a run record for HTML and Markdown: metrics and slices, components, layers, host and versions as lines."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import REGRESSIONS_NAME, RunRecord, VariantRecord
from vlm_edge.documents import read_json
from vlm_edge.errors import VlmEdgeError
from vlm_edge.facts import LayerNoise, LayerSensitivity, QuantizeFacts
from vlm_edge.report.numbers import named_format, split_metric

MOST_REGRESSIONS_BYTES = 2**26
NOT_OF_THE_TASK = ("latency_", "cold_start", "throughput", "cost_", "size_", "parameters", "macs", "peak_rss")
"""Prefixes of metrics that do not measure the answers."""

Lines = list[tuple[str, str]]
"""Names and values, both as text."""


@dataclass(frozen=True)
class TaskRow:
    """One metric of the task, or one slice of its primary metric: the baseline's, the variant's, drop and ratio."""

    metric: str
    baseline: Measurement | None
    found: Measurement
    drop: Measurement | None
    ratio: Measurement | None


@dataclass(frozen=True)
class ComponentRow:
    """One output of a quantized component, as text; ``asked`` is empty where the recipe asked for this scheme.

    ``size`` is in MB, before and after: ``4.00 → 1.10``.
    """

    component: str
    scheme: str
    asked: str
    output: str
    cosine: str
    sqnr: str
    size: str


class LayerRow(NamedTuple):
    """The facts of one quantized layer, and the component that it belongs to."""

    component: str
    layer: LayerNoise

    @property
    def worst_db(self) -> float:
        """The output's ratio; where it was not measured, the smaller of the other two."""
        own = [each for each in (self.layer.weight_sqnr_db, self.layer.input_sqnr_db) if each is not None]
        return self.layer.output_sqnr_db if self.layer.output_sqnr_db is not None else min(own, default=float("inf"))


class SensitivityRow(NamedTuple):
    """The facts of one layer quantized alone; ``why`` it was left float, where it was."""

    component: str
    layer: LayerSensitivity
    why: str


def metrics_of(variant: VariantRecord) -> dict[str, Measurement]:
    """Measurements by metric."""
    return {found.metric: found for found in variant.measurements}


def at_one_load(record: RunRecord, *, but: Collection[str] = ()) -> dict[str, dict[str, Measurement]]:
    """Each variant's measurements by metric, its latencies as if all had been measured in the baseline's sitting.

    A variant's milliseconds belong to the minutes in which they were measured, and to what else the host did then. Its
    speed-up is over the baseline in the same rounds. So the baseline's milliseconds over the speed-up are given, with
    the speed-up's interval, and components' times by the same factor. Metrics in ``but`` stay as they were measured.
    """
    shown = {variant.name: metrics_of(variant) for variant in record.variants}
    before = shown[record.variants[0].name] if record.variants else {}
    for variant in record.variants[1:]:
        metrics = shown[variant.name]
        for metric, own in list(metrics.items()):
            base, part = split_metric(metric)
            speedup = metrics.get(f"{base.removesuffix('_ms')}_speedup") if base.endswith("_ms") else None
            if speedup is None or base not in before or metric in but or not speedup.low > 0:
                continue
            ms = before[base].value
            if part is None:
                ends = {"low": ms / speedup.high, "value": ms / speedup.value, "high": ms / speedup.low, "n": speedup.n}
                metrics[metric] = own.model_copy(update=ends)
            elif own_whole := metrics_of(variant).get(base):
                factor = ms / speedup.value / own_whole.value
                ends = {end: factor * getattr(own, end) for end in ("low", "value", "high")}
                metrics[metric] = own.model_copy(update=ends)
    return shown


def task_rows(record: RunRecord, variant: VariantRecord, *, slices: bool) -> list[TaskRow]:
    """The task's metrics of a variant beside the baseline's: those of all samples, or those of the slices.

    A metric's drop and ratio stand in its row. A part of the primary metric is a slice (``accuracy[color]``);
    ``recall_at_1[image-to-text]`` is a metric.
    """
    found, before = metrics_of(variant), metrics_of(record.variants[0])
    names = {part for base, part in map(split_metric, found) if base == "accuracy" and part is not None}
    rows = []
    for metric, measurement in found.items():
        base, part = split_metric(metric)
        suffix, kinds = f"[{part}]" if part is not None else "", ("_drop_pt", "_ratio")
        of_another = any(base.endswith(kind) and f"{base.removesuffix(kind)}{suffix}" in found for kind in kinds)
        if metric.startswith(NOT_OF_THE_TASK) or (part in names) != slices or of_another:
            continue
        drop, ratio = (found.get(f"{base}{kind}{suffix}") for kind in kinds)
        rows.append(TaskRow(metric, before.get(metric), measurement, drop, ratio))
    return rows


def slice_name(row: TaskRow) -> str:
    """``color`` for a slice of the primary metric, else the metric in words."""
    base, part = split_metric(row.metric)
    return part if base == "accuracy" and part is not None else named_format(row.metric).title


def component_times(metrics: Mapping[str, Measurement], percentile: str = "p50") -> dict[str, Measurement]:
    """Latency of each part of a query, by the part's name; empty where it was not measured."""
    parts = {}
    for metric, found in metrics.items():
        base, part = split_metric(metric)
        if base == f"latency_{percentile}_ms" and part is not None:
            parts[part] = found
    return parts


def control_of(record: RunRecord) -> list[Measurement]:
    """The run's A/A control: the baseline against itself, in two processes."""
    return [found for found in record.variants[0].measurements if found.metric.endswith("_control")]


def last_quantized(record: RunRecord) -> tuple[VariantRecord, QuantizeFacts] | None:
    """The deciding variant and the facts of its quantization, or those of the last variant that was quantized."""
    decides = [variant for variant in record.variants if variant.name == record.decided_by]
    for variant in (*decides, *reversed(record.variants)):
        for run in reversed(variant.runs):
            if (facts := run.facts_as(QuantizeFacts)) is not None:
                return variant, facts
    return None


def component_rows(facts: QuantizeFacts) -> list[ComponentRow]:
    """Every output of every component, in the record's order."""
    rows = []
    for component, fact in facts.components.items():
        asked = "" if fact.asked == fact.scheme else fact.asked
        sizes = [each for each in (fact.float_size_bytes, fact.size_bytes) if each is not None]
        size = " → ".join(f"{each / 1e6:,.2f}" for each in sizes)
        outputs = [(output, plain(each.cosine), plain(each.sqnr_db)) for output, each in fact.outputs.items()]
        rows += [ComponentRow(component, fact.scheme, asked, *each, size) for each in outputs or [("", "", "")]]
    return rows


def layer_rows(facts: QuantizeFacts) -> list[LayerRow]:
    """Every quantized layer, in the graphs' order."""
    return [LayerRow(component, each) for component, fact in facts.components.items() for each in fact.layers]


def sensitivity_rows(facts: QuantizeFacts) -> list[SensitivityRow]:
    """Every layer that was ranked, in the components' order."""
    return [
        SensitivityRow(component, each, fact.float_because.get(each.name, ""))
        for component, fact in facts.components.items()
        for each in fact.sensitivity
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> Lines:
    """Nested values as (name, text) lines: ``packages.numpy`` and ``2.4.6``. A list, of lists too, is one line."""
    lines = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            lines += flat(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            lines += flat({str(index): each for index, each in enumerate(value)}, f"{name}.")
        else:
            lines.append((name, plain(value)))
    return lines


def plain(value: Any) -> str:
    """One value as text: null is "-", a list has commas, and lists in a list semicolons between them."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        parts = [plain(each) for each in value]
        nested = any(isinstance(each, (list, tuple)) for each in value)
        if nested and len(set(parts)) == 1:
            return f"{parts[0]} ({len(parts)} times)" if len(parts) > 1 else parts[0]
        return ("; " if nested else ", ").join(parts) or "none"
    return str(value) if not isinstance(value, Mapping) else "none"


def host_lines(record: RunRecord) -> Lines:
    """The machine, without the versions of its packages."""
    return flat({key: value for key, value in record.host.items() if key != "packages"})


def version_lines(record: RunRecord) -> Lines:
    """Versions of the packages that decide the results, and of the others installed."""
    installed = record.host.get("packages")
    others = installed if isinstance(installed, Mapping) else {}
    return sorted(flat({**others, **record.versions}))


def shared_conditions(record: RunRecord) -> tuple[Lines, dict[str, Lines]]:
    """Conditions that were the same while every variant was measured, and by variant those that differed.

    Facts of the record's host are left out where they were the same.
    """
    host = {f"host.{key}": text for key, text in flat(record.host)}
    flats = {
        variant.name: {key: text for key, text in flat(variant.conditions) if host.get(key) != text}
        for variant in record.variants
        if variant.conditions
    }
    if not flats:
        return [], {}
    first = next(iter(flats.values()))
    shared = {key for key, value in first.items() if all(each.get(key) == value for each in flats.values())}
    same = [(key, value) for key, value in first.items() if key in shared]
    own = {name: [(key, value) for key, value in each.items() if key not in shared] for name, each in flats.items()}
    return same, {name: lines for name, lines in own.items() if lines}


def read_regressions(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The worst regressed samples of every variant, as the run kept them beside its record; none if it kept none.

    Raises:
        VlmEdgeError: the file is not what a run writes.
    """
    file = folder / REGRESSIONS_NAME
    if not file.is_file():
        return {}
    found = read_json(file, MOST_REGRESSIONS_BYTES, "run the recipe again, or remove the file")
    if not isinstance(found, dict) or not all(isinstance(samples, list) for samples in found.values()):
        raise VlmEdgeError(f"{file}: not a mapping of variants to samples", "run the recipe again, or remove the file")
    return found
