"""Measure a variant for the runner: accuracy, regressed samples, latency and footprint of its engine."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_edge.backends import builds_on_device, compile_available, engine_available
from vlm_edge.backends.kits import KIT_NAME, read_kit
from vlm_edge.core.measurement import IN_ANY_CASE, LatencyAsked, Measurement, Timed, Until
from vlm_edge.core.stage import Progress, TaskSpec
from vlm_edge.core.target import KIT_ASKED, Target
from vlm_edge.core.toolbox import Evaluators
from vlm_edge.data import load_dataset
from vlm_edge.data.dataset import Dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import EVALUATOR_VERSION, compare, evaluate
from vlm_edge.evaluation.footprint import footprint
from vlm_edge.evaluation.host import lacks_isa
from vlm_edge.evaluation.kit_runs import BUNDLE, complete_kit
from vlm_edge.evaluation.latency import LATENCY_VERSION, Bench, LatencySettings, measure_latency
from vlm_edge.evaluation.outcomes import Outcomes
from vlm_edge.evaluation.queries import draw_samples
from vlm_edge.processing.images import read_image


class EngineEvaluators(Evaluators):
    """Measures compiled engines through the runtime, the very code that answers on the device."""

    def __init__(self, latency: LatencySettings | None = None) -> None:
        self._latency = latency or LatencySettings()

    @property
    def versions(self) -> dict[str, str]:
        return {
            "accuracy": EVALUATOR_VERSION,
            "compare": EVALUATOR_VERSION,
            "latency": f"{LATENCY_VERSION} {self._latency.model_dump_json(exclude={'patience', 'open_seconds'})}",
            "footprint": EVALUATOR_VERSION,
        }

    def unmeasurable(self, target: Target) -> str | None:
        return KIT_ASKED if target.kit else engine_available(target.engine) or lacks_isa(target.isa)

    def compilable(self, target: Target) -> bool:
        builds = compile_available(target.engine) is None or builds_on_device(target.engine)
        return target.kit or (builds and lacks_isa(target.isa) is None)

    def emulated(self, engine: Path) -> str | None:
        by = read_kit(engine)[0].emulated_by if (engine / KIT_NAME).is_file() else None
        return by and f"emulated: {by} ran the kit's graphs"

    def complete_kit(self, run: Path, baseline: Path, task: TaskSpec) -> None:
        if (run / BUNDLE / KIT_NAME).is_file():
            complete_kit(run, baseline, draw_samples(task, self._latency.samples, self._latency.seed))

    def accuracy(self, engine: Path, task: TaskSpec, progress: Progress) -> dict[str, Any]:
        return evaluate(engine, task, progress=progress).to_json()

    def compare(self, baseline: dict[str, Any], candidate: dict[str, Any], seed: int) -> list[Measurement]:
        return compare(Outcomes.model_validate(baseline), Outcomes.model_validate(candidate), seed)

    def regressions(self, baseline: dict[str, Any], candidate: dict[str, Any], task: TaskSpec) -> list[dict[str, Any]]:
        dataset = load_dataset(task.data, "test")
        return regressions(Outcomes.model_validate(baseline), Outcomes.model_validate(candidate), dataset)

    def latency(
        self,
        baseline: Path,
        candidate: Path,
        task: TaskSpec,
        target: Target,
        asked: LatencyAsked,
        progress: Progress,
        until: Until = IN_ANY_CASE,
    ) -> Timed:
        lengths = {"patience": until.patience_s, "open_seconds": until.open_s}
        bench = Bench(task, target.threads, asked, self._latency.model_copy(update=lengths))
        return measure_latency(baseline, candidate, bench, progress=progress, is_open=until.is_open)

    def footprint(self, baseline: Path, candidate: Path, task: TaskSpec) -> list[Measurement]:
        return footprint(baseline, candidate, task)


THUMBNAIL_PX = 160


def regressions(baseline: Outcomes, candidate: Outcomes, dataset: Dataset, most: int = 8) -> list[dict[str, Any]]:
    """At most ``most`` samples whose score fell, by how far, and of equal ones every image's first before its second.

    Each has ``id``, ``image`` (its file name), ``text``, ``expected`` (the answers, the most common first), both
    engines' answers as ``baseline`` and ``candidate``, ``score_before``, ``score_after`` and ``thumbnail``: a PNG data
    URL of at most 160 pixels a side, or an empty text where the image cannot be read any more.
    """
    samples = {sample.id: sample for sample in dataset.samples}
    after = {id: row for row, id in enumerate(candidate.ids)}
    old, new = baseline.scores["accuracy"], candidate.scores["accuracy"]
    fallen = [
        (old[row] - new[after[id]], row, after[id])
        for row, id in enumerate(baseline.ids)
        if id in after and id in samples and old[row] > new[after[id]]
    ]
    fallen.sort(key=lambda found: (-found[0], found[1]))
    seen: Counter[tuple[float, Path]] = Counter()
    ranked = []
    for drop, row, other in fallen:
        image = samples[baseline.ids[row]].image
        ranked.append(((-drop, seen[drop, image], row), row, other))
        seen[drop, image] += 1
    found = []
    for _, row, other in sorted(ranked)[:most]:
        sample = samples[baseline.ids[row]]
        found.append(
            {
                "id": sample.id,
                "image": sample.image.name,
                "text": "" if dataset.kind == "retrieval" else sample.text,  # a caption is an answer there
                "expected": _expected(sample.answers),
                "baseline": baseline.predictions[row],
                "candidate": candidate.predictions[other],
                "score_before": old[row],
                "score_after": new[other],
                "thumbnail": thumbnail(sample.image),
            }
        )
    return found


def thumbnail(path: Path) -> str:
    """A small PNG of an image as a data URL; an empty text if it cannot be read."""
    try:
        image = Image.fromarray(read_image(path, "white"))
    except VlmEdgeError:
        return ""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _expected(answers: Sequence[str]) -> str:
    """The different answers, the most common first, with the number of annotators where they differ."""
    counts = Counter(answers).most_common()
    if len(counts) in (1, len(answers)):
        return ", ".join(answer for answer, _ in counts)
    return ", ".join(f"{answer} ({count})" for answer, count in counts)
