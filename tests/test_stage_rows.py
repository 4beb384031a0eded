"""Stages added to the table by a caller go through check, plan, run and ``run_stage`` like the package's own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_toolbox import Config, toy_stage, toy_toolbox, write_recipe

from vlm_edge import api
from vlm_edge.cli.main import COMMANDS
from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import Named, StageInputs, StageSpec, StageWork
from vlm_edge.core.toolbox import Toolbox
from vlm_edge.errors import RecipeError
from vlm_edge.stages import STAGES
from vlm_edge.toolbox import default_toolbox

STAGE_LIST: list[dict[str, Any]] = [{"export": {}}, {"fold": {}}, {"thin": {"strength": 0.5}}, {"compile": {}}]


@pytest.fixture
def toolbox(tmp_path: Path) -> Toolbox:
    """The toy stages, with ``thin`` (checkpoint to checkpoint) and ``fold`` (graphs to graphs) as rows more."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.txt").write_text("dense\n")
    tools, log = toy_toolbox(tmp_path / "model")
    thin = toy_stage("thin", ArtifactKind.CHECKPOINT, ArtifactKind.CHECKPOINT, log)
    fold = toy_stage("fold", ArtifactKind.GRAPHS, ArtifactKind.GRAPHS, log)
    return replace(tools, stages={**tools.stages, "thin": thin, "fold": fold})


def test_a_recipe_with_added_stages_is_checked_planned_and_run(toolbox: Toolbox, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, stages=STAGE_LIST)
    assert [entry.stage for entry in api.check_recipe(path, toolbox=toolbox).stages] == [
        "export", "fold", "thin", "compile",
    ]  # fmt: skip
    planned = api.plan_recipe(path, tmp_path / "store", toolbox=toolbox)
    assert [(row.stage, row.implied) for row in planned if row.variant == "thin"] == [
        ("thin", False), ("export", False), ("fold", False), ("compile", True),
    ]  # fmt: skip
    record = api.run_recipe(path, store=tmp_path / "store", runs=tmp_path / "runs", toolbox=toolbox)
    engine = tmp_path / "runs" / "toy" / "bundle" / "model.txt"
    assert engine.read_text().split() == ["dense", "thin(0.5)", "export(1)", "fold(1)", "compile(1)"]
    assert all(row.cached for row in api.plan_recipe(path, tmp_path / "store", toolbox=toolbox))
    assert record.variants[1].stages == ["export", "fold"]


def test_another_stage_that_makes_the_engine_stands_last_and_nothing_is_implied_after_it(
    toolbox: Toolbox, tmp_path: Path
) -> None:
    weave = toy_stage("weave", ArtifactKind.GRAPHS, ArtifactKind.ENGINE, [])
    toolbox = replace(toolbox, stages={**toolbox.stages, "weave": weave})
    path = write_recipe(tmp_path, stages=[{"fold": {}}, {"weave": {}}])
    planned = api.plan_recipe(path, tmp_path / "store", toolbox=toolbox)
    assert [row.stage for row in planned if row.variant == "weave"] == ["export", "fold", "weave"]
    with pytest.raises(RecipeError) as error:
        api.check_recipe(write_recipe(tmp_path, stages=[{"weave": {}}, {"compile": {}}, {"fold": {}}]), toolbox=toolbox)
    assert error.value.faults == [
        "toy.yaml: stages: weave and compile are listed; a variant is lowered by one weave or compile",
        "toy.yaml: stages: compile comes after weave: list weave last",
        "toy.yaml: stages: fold comes after compile: list compile last",
    ]


def test_added_stages_run_alone_on_folders(tiny_clip_graphs: Any, tiny_clip: Path, tmp_path: Path) -> None:
    """The one is given a folder of graphs that is read as such, the other a model."""
    seen: dict[str, ArtifactKind] = {}

    def spec(name: str, kind: ArtifactKind) -> StageSpec:
        def run(config: Config, inputs: StageInputs, work: StageWork) -> None:
            seen[name] = inputs.source.kind
            shutil.copytree(inputs.source.path, work.out, dirs_exist_ok=True)
            work.facts["strength"] = config.strength

        return StageSpec(name, 1, Config, kind, kind, run)

    thin, fold = spec("thin", ArtifactKind.CHECKPOINT), spec("fold", ArtifactKind.GRAPHS)
    tools = replace(default_toolbox(), stages={**STAGES, "thin": thin, "fold": fold})
    facts = api.run_stage("thin", {"strength": 0.25}, tiny_clip, tmp_path / "thin", toolbox=tools)
    assert facts == {"strength": 0.25}
    api.run_stage("fold", {}, tiny_clip_graphs.folder, tmp_path / "folded", toolbox=tools)
    assert seen == {"thin": ArtifactKind.CHECKPOINT, "fold": ArtifactKind.GRAPHS}
    assert (tmp_path / "folded" / "manifest.json").is_file()


def test_an_added_stage_s_own_check_is_asked(tmp_path: Path, tiny_clip: Path) -> None:
    def check(config: Config, named: Named) -> list[tuple[str, str]]:
        return [("strength", f"{named.model.name} takes no more than 1 (got {config.strength:g})")]

    data = api.shipped_folder() / "calibration" / "easy-vqa-zero-shot.yaml"
    fold = replace(toy_stage("fold", ArtifactKind.GRAPHS, ArtifactKind.GRAPHS, []), check=check)
    tools = replace(default_toolbox(), stages={**STAGES, "fold": fold})
    task = {"kind": "classification", "data": str(data)}
    path = write_recipe(tmp_path, model=str(tiny_clip), task=task, stages=[{"fold": {"strength": 2.0}}], budgets={})
    with pytest.raises(RecipeError) as error:
        api.check_recipe(path, toolbox=tools)
    assert f"toy.yaml: stages[0].fold.strength: {tiny_clip.name} takes no more than 1 (got 2)" in error.value.faults


def test_the_table_of_stages_has_one_implied_stage_for_each_way_and_a_command_for_each_row() -> None:
    ways = [(spec.source, spec.output) for spec in STAGES.values() if spec.implied is not None]
    assert sorted(ways) == [
        (ArtifactKind.CHECKPOINT, ArtifactKind.GRAPHS),
        (ArtifactKind.GRAPHS, ArtifactKind.ENGINE),
    ]
    assert list(COMMANDS["Single stages"]) == list(STAGES)
