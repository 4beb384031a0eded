"""Run folders for tests, as the runner writes them, with numbers that a test chooses."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_edge.core.artifact import digest_folder
from vlm_edge.core.budget import Budgets, bounds_of, judge, overall
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RECORD_NAME, RunRecord, VariantRecord
from vlm_edge.evaluation.outcomes import Outcomes

BASELINE_ENGINE = "b" * 64
HOST: dict[str, Any] = {
    "cpu": "Toy CPU",
    "isa": ["avx2"],
    "cores": 2,
    "machine": "x86_64",
    "system": "Linux",
    "packages": {"onnxruntime": "1.31.1", "numpy": "2.4.6"},
}
BUDGETS: dict[str, Any] = {"accuracy": {"max_drop_pt": 1.0}, "latency": {"p90_speedup": 3.0}}


def measured(metric: str, value: float, half: float = 0.0, n: int = 400, unit: str = "") -> Measurement:
    return Measurement(metric=metric, low=value - half, value=value, high=value + half, n=n, unit=unit)


def outcomes_of(scores: Sequence[float], engine: str, data: str = "d" * 64, task: str = "vqa") -> Outcomes:
    """One sample an image."""
    ids = tuple(f"q{index}" for index in range(len(scores)))
    return Outcomes.model_validate(
        {
            "task": task,
            "engine": engine,
            "data": data,
            "ids": ids,
            "groups": ids,
            "scores": {"accuracy": list(scores)},
            "predictions": ["yes"] * len(scores),
            "slices": [[]] * len(scores),
        }
    )


def scores_with(right: int, wrong: int, seed: int = 0) -> list[float]:
    scores = [1.0] * right + [0.0] * wrong
    random.Random(seed).shuffle(scores)
    return scores


def write_run(
    folder: Path,
    *,
    name: str = "toy",
    task: str = "vqa",
    scores: Sequence[float] = (1.0,) * 400,
    data: str = "d" * 64,
    weights: bytes = b"weights",
    speedup: tuple[float, float] = (4.0, 0.04),
    size: int = 1_000_000,
    rss: float = 100.0,
    control: float | None = None,
    drop: Measurement | None = None,
    budgets: dict[str, Any] = BUDGETS,
    unmeasured: str | None = None,
    target: dict[str, Any] | None = None,
    baseline_engine: str = BASELINE_ENGINE,
    **changes: Any,
) -> Path:
    """A run of two variants, ``baseline`` and ``compile``, with its outcomes and its bundle.

    Args:
        speedup: the p90 speed-up and the half width of its interval.
        control: the far end of the A/A control's interval at p90.
        changes: fields of the record.
    """
    bundle = folder / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "model.onnx").write_bytes(weights)
    engine = digest_folder(bundle)
    drop = drop or measured("accuracy_drop_pt", 0.1, 0.1)
    found = [
        drop,
        measured("latency_p90_ms", 10 / speedup[0], 0.1, unit="ms"),
        measured("latency_p90_speedup", *speedup, unit="x"),
        measured("size_bytes", size, n=1, unit="B"),
        measured("peak_rss_mb", rss, unit="MiB"),
    ]
    own = [] if control is None else [measured("latency_p90_control", 1.0, control - 1, unit="x")]
    variants = [
        _variant("baseline", baseline_engine, own, budgets, ()),
        _variant("compile", engine, [] if unmeasured else found, budgets, own, unmeasured),
    ]
    record = {
        "name": name,
        "verdict": variants[-1].verdict,
        "decided_by": "compile",
        "best": "compile",
        "variants": variants,
        "recipe": {
            "name": name,
            "task": {"kind": task, "data": "toy.yaml"},
            "target": target or {"name": "toy", "engine": "onnxruntime", "threads": 2},
            "budgets": budgets,
            "stages": [{"name": "compile", "stage": "compile", "config": {}, "budgets": budgets}],
        },
        "host": HOST,
        "versions": {"vlm-edge": "0.1.0"},
        "seed": 0,
        "started": "2026-11-21T03:00:00+00:00",
        "wall_s": 1.0,
    }
    text = RunRecord.model_validate({**record, **changes}).model_dump_json(indent=1)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")
    for variant in ("baseline", "compile"):
        digest = baseline_engine if variant == "baseline" else engine
        rows = json.dumps(outcomes_of(scores, digest, data, task).to_json()).encode()
        (folder / "outcomes").mkdir(exist_ok=True)
        (folder / "outcomes" / f"{variant}.json.gz").write_bytes(gzip.compress(rows, mtime=0))
    return folder


def _variant(
    name: str,
    engine: str,
    found: list[Measurement],
    budgets: dict[str, Any],
    control: Sequence[Measurement],
    unmeasured: str | None = None,
) -> VariantRecord:
    bounds = bounds_of(Budgets.model_validate(budgets))
    verdicts = [judge(bound, found, control=control, unmeasurable=unmeasured) for bound in bounds]
    return VariantRecord(
        name=name,
        stages=["export", "compile"],
        runs=[],
        artifacts={"engine": engine},
        measurements=found,
        verdicts=verdicts,
        verdict=overall(verdicts),
        unmeasured=unmeasured,
        outcomes=None if unmeasured else f"outcomes/{name}.json.gz",
    )
