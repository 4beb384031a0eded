"""The task's metric is handed to the stages that read it, and its version is part of their keys alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toy_toolbox import toy_toolbox, write_recipe

from vlm_edge.core.recipe import read_recipe
from vlm_edge.core.runner import Runner
from vlm_edge.core.stage import SilentProgress
from vlm_edge.core.store import Store


@dataclass(frozen=True)
class Metric:
    version: str

    def samples(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("no stage of this test measures")


def keys(folder: Path, version: str) -> dict[str, str | None]:
    """Stage -> key of its first run, with a quantize stage that reads the metric."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.txt").write_text("dense\n")
    tools, _ = toy_toolbox(folder / "model")
    seen: list[Any] = []
    spec = tools.stages["quantize"]

    def run(config: Any, inputs: Any, work: Any) -> None:
        seen.append(work.metric)
        spec.run(config, inputs, work)

    stages = {**tools.stages, "quantize": replace(spec, run=run, reads=frozenset({"metric"}))}
    tools = replace(tools, stages=stages, metric=Metric(version))
    recipe = read_recipe(write_recipe(folder), tools.stages)
    record = Runner(recipe, tools, Store(folder / version), SilentProgress()).run(folder / "runs")
    assert seen
    assert all(metric == Metric(version) for metric in seen)
    return {run.stage: run.key for run in reversed([run for each in record.variants for run in each.runs])}


def test_a_metric_s_version_is_part_of_the_key_of_what_reads_it(tmp_path: Path) -> None:
    first, second = keys(tmp_path, "1"), keys(tmp_path, "2")
    assert first["export"] == second["export"]
    assert first["quantize"] != second["quantize"]
