"""Run records with everything that a report can show, made from a plain one."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.record import RunRecord, StageRun, VariantRecord

HOSTILE = "<script>alert('x')</script>\"&|`](http://x.example)"
COMPONENTS = ("vision_encoder", "text_encoder", "decoder", "preprocessing", "other")


QUANTIZED = {"isa": "x86-vnni", "calibration_samples": 224, "held_out_samples": 32}


def measured(metric: str, value: float, spread: float = 0.01, n: int = 400, unit: str = "ms") -> Measurement:
    return Measurement(metric=metric, low=value - spread, value=value, high=value + spread, n=n, unit=unit)


def full_record(record: RunRecord, *, slices: int = 3, hostile: bool = True) -> RunRecord:
    """Components, slices, other metrics, an A/A control, conditions, layers; the last variant has every verdict."""
    variants = [_full(variant, index, slices) for index, variant in enumerate(record.variants)]
    last = variants[-1]
    drop = next(each for each in last.measurements if each.metric == "accuracy_drop_pt[slice 0]")
    undecided = Judgement(
        budget="accuracy.slices.slice 0.max_drop_pt",
        metric=drop.metric,
        bound=f"<= {drop.value:g}",
        verdict=Verdict.UNDECIDED,
        measured=drop,
        reason="the interval holds the bound",
        needed_n=21456,
    )
    missing = Judgement(
        budget="latency.p99_speedup",
        metric="latency_p99_speedup",
        bound=">= 4",
        verdict=Verdict.NOT_MEASURED,
        reason="662 queries are needed for p99",
    )
    verdicts = [*last.verdicts, undecided, missing]
    variants[-1] = last.model_copy(update={"verdicts": verdicts, "verdict": Verdict.NOT_MEASURED})
    if hostile:
        variants[1] = variants[1].model_copy(update={"name": HOSTILE})
    changes = {"variants": variants, "verdict": Verdict.NOT_MEASURED, "best": None, "commit": "c0ffee5f1e-dirty"}
    return record.model_copy(update=changes)


def not_measured(variant: VariantRecord, reason: str) -> VariantRecord:
    """The variant without a measurement, and so without a verdict on any budget."""
    verdicts = [
        each.model_copy(update={"measured": None, "verdict": Verdict.NOT_MEASURED, "reason": reason})
        for each in variant.verdicts
    ]
    changes = {"verdicts": verdicts, "verdict": Verdict.NOT_MEASURED, "measurements": [], "unmeasured": reason}
    return variant.model_copy(update=changes)


def _full(variant: VariantRecord, index: int, slices: int) -> VariantRecord:
    found = [each for each in variant.measurements if "[" not in each.metric]
    found += [measured(f"latency_p50_ms[{name}]", 1.5 + index / 7 + k) for k, name in enumerate(COMPONENTS)]
    for k in range(slices):
        share = 0.9 - index / 50 - k / 200
        found.append(measured(f"accuracy[slice {k}]", share, unit="share"))
        found.append(measured(f"accuracy_drop_pt[slice {k}]", 1.0 + index + k / 3, 0.4, unit="pt"))
        found.append(measured(f"accuracy_ratio[slice {k}]", share / 0.9, unit="ratio"))
    found += [measured("f1", 0.8123 - index / 100, unit="share"), measured("f1_drop_pt", 1.0 * index, unit="pt")]
    found += [measured("exact_match", 0.9712 - index / 100, unit="share")]
    found.append(Measurement(metric="macs", low=61e7, value=61e7, high=61e7, n=1, unit=""))
    if index == 0:
        found += [
            measured("latency_p50_control", 1.001, 0.006, unit="x"),
            measured("latency_p90_control", 1.01, 0.02, unit="x"),
        ]
    conditions: dict[str, Any] = {
        "threads": 2,
        "throttled": False,
        "load": [1.5, index + 0.5],
        "blocks": {"count": 17},
        "host": {"cpu": "Intel Xeon"},
    }
    runs = [_with_layers(run) if run.stage == "quantize" else run for run in variant.runs]
    return variant.model_copy(update={"measurements": found, "conditions": conditions, "runs": runs})


def _with_layers(run: StageRun) -> StageRun:
    layers = [
        {
            "name": f"encoder.layers.{k}.mlp.fc1",
            "operator": "MatMulIntegerToFloat",
            "weight_sqnr_db": 43.5 - k / 10,
            "input_sqnr_db": None if k == 3 else 35.25 + k,
            "output_sqnr_db": 20.75 + k,
        }
        for k in range(15)
    ]
    component = {
        "asked": "int8",
        "scheme": "int8-smooth",
        "outputs": {"image_embeds": {"cosine": 0.999321, "sqnr_db": 31.75}},
        "float_size_bytes": 4_000_000,
        "size_bytes": 1_100_000,
        "layers": layers,
    }
    components = {"vision_encoder": component, "decoder": {"asked": "none", "scheme": "none"}}
    return run.model_copy(update={"facts": {**QUANTIZED, "components": components}})


def regressions_of(record: RunRecord) -> dict[str, list[dict[str, Any]]]:
    """One picture of noise for every variant but the baseline, and one sample whose picture was not kept."""
    raw = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(raw, "PNG")
    sample = {
        "id": "test/7#3",
        "image": "7.png",
        "text": "what color is the <b>shape</b>?",
        "expected": "teal",
        "baseline": "teal",
        "candidate": "navy",
        "score_before": 1.0,
        "score_after": 0.3,
        "thumbnail": "data:image/png;base64," + base64.b64encode(raw.getvalue()).decode(),
    }
    other = {**sample, "id": "test/8#0", "thumbnail": "https://x.example/8.png"}
    return {variant.name: [sample, other] for variant in record.variants[1:]}
