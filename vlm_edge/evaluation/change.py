"""Changes from one run of a recipe to another, for the gate (:func:`change_between`) and side by side.

Accuracy is paired, sample by sample, through the outcomes that both runs kept. Latency is the ratio of two speed-ups
over the same baseline engine, both taken on hosts of one fingerprint; or both engines are measured again in turns
(:func:`measured_again`), which is the right way where one host has both. What can't be compared gets a reason, never
a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from vlm_edge.checked import first_fault
from vlm_edge.core.artifact import digest_folder
from vlm_edge.core.gate import Change, recorded_target
from vlm_edge.core.measurement import Difference, LatencyAsked, Measurement
from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.core.stage import Progress, TaskSpec
from vlm_edge.core.target import Target
from vlm_edge.core.toolbox import Evaluators
from vlm_edge.documents import parse_json, read_text
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.comparison import compare
from vlm_edge.evaluation.host import engine_packages
from vlm_edge.evaluation.outcomes import Outcomes
from vlm_edge.evaluation.paired_metrics import measurement, suffixed
from vlm_edge.statistics.intervals import Interval, ratio_of_ratios

MOST_OUTCOMES_BYTES = 2**29
"""Of a file of outcomes, decompressed; 410 MB hold the embeddings of 50,000 images and as many texts, 768 wide."""
HOST_KEYS = ("cpu", "isa", "cores", "machine", "system")
"""With the versions of the engines' packages, what :func:`vlm_edge.evaluation.host.host_fingerprint` is made of."""


class Side(NamedTuple):
    """One variant of one run; ``folder`` is the run's."""

    record: RunRecord
    variant: VariantRecord
    folder: Path

    @property
    def engine(self) -> str | None:
        """Digest of the variant's engine."""
        return self.variant.artifacts.get("engine")

    def measured(self, metric: str) -> Measurement | None:
        return next((found for found in self.variant.measurements if found.metric == metric), None)


def change_between(before: Side, after: Side, percentiles: Sequence[str]) -> Change:
    """The change from ``before`` to ``after``, the later run, by the two records and their outcomes.

    Args:
        percentiles: whose slow-down is wanted, such as ``p90``.
    """
    unpaired, drops = paired(before, after)
    drops = [each for each in drops if each.metric == "accuracy_drop_pt"]
    other = other_conditions(before, after)
    parts = [
        Change(measurements=drops, reasons={} if drops else {"accuracy_drop_pt": unpaired}),
        *(_slowdown(before, after, each, other) for each in percentiles),
        _growth("size_growth", "size_bytes", before, after, None),
        _growth("peak_rss_growth", "peak_rss_mb", before, after, other),
    ]
    return joined(parts)


def joined(parts: Sequence[Change]) -> Change:
    """Several changes as one; a later part replaces what an earlier one has of the same metric."""
    measurements = {each.metric: each for part in parts for each in part.measurements}
    reasons = {metric: why for part in parts for metric, why in part.reasons.items() if metric not in measurements}
    control = {each.metric: each for part in parts for each in part.control}
    return Change(measurements=list(measurements.values()), reasons=reasons, control=list(control.values()))


def measured_again(
    before: Path,
    after: Path,
    task: TaskSpec,
    target: Target,
    evaluators: Evaluators,
    percentiles: Sequence[str],
    progress: Progress,
) -> Change:
    """The slow-down from one engine to another, both measured now, in a process each and in turns.

    The earlier engine is measured against itself too: the A/A control, which says what this host can tell apart.
    """
    asked = LatencyAsked(percentiles=tuple(int(each[1:]) / 100 for each in percentiles))
    pair = evaluators.latency(before, after, task, target, asked, progress)
    control = evaluators.latency(before, before, task, target, asked, progress)
    slowdowns = [
        measurement(f"latency_{each}_slowdown", Interval(1 / found.high, 1 / found.low), 1 / found.value, found.n, "x")
        for each in percentiles
        for found in pair.measurements
        if found.metric == f"latency_{each}_speedup"
    ]
    controls = [each for each in control.measurements if each.metric.endswith("_control")]
    names = {each.metric for each in slowdowns}
    wanted = [f"latency_{each}_slowdown" for each in percentiles]
    few = "there were too few queries for this percentile in the time that measuring may take"
    return Change(measurements=slowdowns, reasons={n: few for n in wanted if n not in names}, control=controls)


def check_bundle(record: RunRecord, folder: Path) -> None:
    """Raise VlmEdgeError if the bundle beside a record is none of the engines that the run measured."""
    bundle = folder / "bundle"
    engines = {digest for variant in record.variants if (digest := variant.artifacts.get("engine"))}
    if bundle.is_dir() and digest_folder(bundle) not in engines:
        raise VlmEdgeError(
            f"{bundle}: not what was judged: its content is none of the engines in the record",
            "run the recipe again: it copies the engine from the store",
        )


def engine_of(side: Side, store: Path | None) -> Path:
    """The folder of a variant's engine: the run's bundle if it is that one, else the store's object.

    Raises:
        VlmEdgeError: it is in neither, or has changed.
    """
    objects = [store / "objects" / side.engine] if store is not None and side.engine else []
    for folder in (side.folder / "bundle", *objects):
        if folder.is_dir() and digest_folder(folder) == side.engine:
            return folder
    raise VlmEdgeError(
        f"{side.folder}: the engine of {side.variant.name} is neither its bundle nor in the store",
        "keep the bundle with the run, and judge the variant that it holds (`best` in run.json) with --variant",
    )


def paired(before: Side, after: Side) -> tuple[str, list[Measurement]]:
    """``after`` compared with ``before`` through the outcomes that both runs kept; or the reason, and no measurement.

    Raises:
        VlmEdgeError: a file of outcomes is damaged.
    """
    outcomes = []
    for side in (before, after):
        reason, found = kept_outcomes(side)
        if found is None:
            return reason, []
        outcomes.append(found)
    if outcomes[0].data != outcomes[1].data:
        digests = " and ".join(each.data[:12] for each in outcomes)
        return f"the two runs were evaluated on other data: {digests}", []
    try:
        return "", compare(outcomes[0], outcomes[1], after.record.seed)
    except VlmEdgeError as error:
        return error.message, []


def kept_outcomes(side: Side) -> tuple[str, Outcomes | None]:
    """The outcomes that a run kept of its variant, or why there are none.

    Raises:
        VlmEdgeError: the file is damaged.
    """
    if side.variant.outcomes is None:
        return side.variant.unmeasured or f"{side.folder} kept no outcomes of {side.variant.name}", None
    file = side.folder / side.variant.outcomes
    try:
        found = Outcomes.model_validate(parse_json(read_text(file, MOST_OUTCOMES_BYTES)))
    except FileNotFoundError:
        return f"{file} is not there: keep the whole folder of a run, not run.json alone", None
    except (OSError, ValueError) as error:  # ValueError: too large, not JSON, not UTF-8, no outcomes
        fault = first_fault(error, Outcomes) if isinstance(error, ValidationError) else str(error)
        raise VlmEdgeError(f"{file}: damaged: {fault}", "run the recipe again") from error
    if found.engine != side.engine:
        raise VlmEdgeError(f"{file}: of another engine than the record's", "run the recipe again")
    return "", found


def _slowdown(before: Side, after: Side, percentile: str, other: str | None) -> Change:
    """The earlier speed-up over the later one; both are over the same baseline engine.

    ``other`` says why times can't be compared, if they can't.
    """
    metric, speedup = f"latency_{percentile}_slowdown", f"latency_{percentile}_speedup"
    baselines = {side.record.variants[0].artifacts.get("engine") for side in (before, after)}
    if other is None and len(baselines) > 1:
        other = "the two runs have another baseline engine, so their speed-ups can't be compared"
    earlier, later = before.measured(speedup), after.measured(speedup)
    if other or earlier is None or later is None:
        return Change(reasons={metric: other or _lacking(speedup, before, after)})
    n = min(earlier.n, later.n)
    if before.engine == after.engine and before.record.versions == after.record.versions:
        return Change(measurements=[measurement(metric, Interval(1.0, 1.0), 1.0, n, "x")])
    value, interval = quotient(earlier, later)
    return Change(
        measurements=[measurement(metric, interval, value, n, "x")],
        control=_controls(before, after, percentile),
    )


def _lacking(metric: str, before: Side, after: Side) -> str:
    """Reason why one of two variants has no measurement of a metric."""
    side = before if before.measured(metric) is None else after
    return side.variant.unmeasured or f"{side.folder} has no {metric} of {side.variant.name}"


def quotient(above: Measurement, below: Measurement) -> tuple[float, Interval]:
    """``above / below`` and its interval, the two being positive and measured independently."""
    interval = ratio_of_ratios((above.low, above.value, above.high), (below.low, below.value, below.high))
    return above.value / below.value, interval


def _controls(before: Side, after: Side, percentile: str) -> list[Measurement]:
    """Both runs' A/A controls as one: each speed-up may be off by as much as its own control was."""
    metric = f"latency_{percentile}_control"
    found = [each for side in (before, after) for each in side.record.variants[0].measurements if each.metric == metric]
    if not found:
        return []
    low, value, high = 1.0, 1.0, 1.0
    for each in found:
        low, value, high = low * min(each.low, 1.0), value * each.value, high * max(each.high, 1.0)
    return [Measurement(metric=metric, low=low, value=value, high=high, n=min(each.n for each in found), unit="x")]


def _growth(metric: str, of: str, before: Side, after: Side, other: str | None) -> Change:
    """Later over earlier; the interval is as wide as both ends allow, and a point for two exact counts."""
    earlier, later = before.measured(of), after.measured(of)
    if other or earlier is None or later is None:
        return Change(reasons={metric: other or _lacking(of, before, after)})
    if not earlier.low > 0:
        return Change(reasons={metric: f"the earlier run's {of} is 0"})
    interval = Interval(later.low / earlier.high, later.high / earlier.low)
    return Change(
        measurements=[measurement(metric, interval, later.value / earlier.value, min(earlier.n, later.n), "x")]
    )


def other_conditions(before: Side, after: Side) -> str | None:
    """Reason why times and memory of two runs can't be compared: another host, other engines, another target."""
    versions = [side.record.host.get("packages") or {} for side in (before, after)]
    hosts = [
        {key: side.record.host.get(key) for key in HOST_KEYS} | {name: kept.get(name) for name in engine_packages()}
        for side, kept in zip((before, after), versions, strict=True)
    ]
    odd = [key for key in hosts[0] if hosts[0][key] != hosts[1][key]]
    if odd:
        shown = "; ".join(f"{key}: {_short(hosts[0][key])} / {_short(hosts[1][key])}" for key in odd)
        return f"the two runs were measured on other hosts ({shown})"
    first, second = (recorded_target(side.record).decides for side in (before, after))
    odd = sorted(key for key in {**first, **second} if first.get(key) != second.get(key))
    return f"the two runs are for other targets ({', '.join(odd)})" if odd else None


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


PERCENTILES = ("p50", "p90", "p99")
_HOST_BOUND = ("latency_", "cold_start_ms", "throughput_per_s", "cost_per_1000", "peak_rss_mb")
_RATIOS = (*_HOST_BOUND, "size_bytes", "parameters", "macs")
_DERIVED = ("_drop_pt", "_ratio", "_speedup", "_control")


def differences(before: Side, after: Side) -> dict[str, Difference]:
    """Differences of ``after`` from ``before`` by metric, for every metric that both have and that can differ.

    Task metrics are compared sample by sample through the outcomes files when both runs were evaluated on the same
    data, else marked as unpaired. Latencies go through the speed-ups over one baseline engine on hosts of one kind.
    Everything else is taken from the two records as if independent.
    """
    earlier = {found.metric: found for found in before.variant.measurements}
    reason, both = paired(before, after)
    drops = {each.metric: each for each in both if each.metric.partition("[")[0].endswith("_drop_pt")}
    times = _times(before, after)
    other_host = other_conditions(before, after)
    found: dict[str, Difference] = {}
    for later in after.variant.measurements:
        metric, first = later.metric, earlier.get(later.metric)
        if first is None or metric.partition("[")[0].endswith(_DERIVED):
            continue
        if metric in times:
            found[metric] = times[metric]
        elif metric.startswith(_HOST_BOUND) and other_host:
            found[metric] = Difference(reason=other_host)
        elif metric.startswith(_RATIOS):
            found[metric] = _ratio(first, later)
        elif (drop := drops.get(suffixed(metric, "_drop_pt"))) is not None:
            found[metric] = Difference(measured=drop, how="paired")
        elif suffixed(metric, "_drop_pt") in {each.metric for each in after.variant.measurements}:
            found[metric] = Difference(measured=_unpaired_drop(first, later), how="unpaired", reason=reason)
    return found


def _times(before: Side, after: Side) -> dict[str, Difference]:
    """The latency percentiles through the speed-ups, where both runs have the same baseline engine."""
    change = change_between(before, after, PERCENTILES)
    slowdowns = {each.metric: each for each in change.measurements}
    return {
        f"latency_{each}_ms": Difference(measured=slowdowns[f"latency_{each}_slowdown"], how="same baseline")
        for each in PERCENTILES
        if f"latency_{each}_slowdown" in slowdowns
    }


def _ratio(before: Measurement, after: Measurement) -> Difference:
    """Later over earlier; a point for two counts."""
    if not min(before.low, after.low) > 0:
        return Difference(reason=f"{before.metric} is 0 in one of them, so there is no ratio")
    value, interval = quotient(after, before)
    exact = before.low == before.high and after.low == after.high
    measured = measurement(f"{after.metric}_change", interval, value, min(before.n, after.n), "x")
    return Difference(measured=measured, how="exact" if exact else "unpaired")


def _unpaired_drop(before: Measurement, after: Measurement) -> Measurement:
    """Earlier less later in hundredths, the two being independent.

    Ends from the two intervals: Newcombe, Statistics in Medicine 17 (1998) 873, method 10 (square and add).
    """
    value = before.value - after.value
    down = math.hypot(before.value - before.low, after.high - after.value)
    up = math.hypot(before.high - before.value, after.value - after.low)
    interval = Interval(100 * (value - down), 100 * (value + up))
    return measurement(suffixed(after.metric, "_drop_pt"), interval, 100 * value, min(before.n, after.n), "pt")
