from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_toolbox import RECIPE, toy_toolbox, write_recipe

from vlm_edge.core.recipe import OnMiss, Recipe, read_recipe
from vlm_edge.errors import RecipeError, VlmEdgeError


def read(path: Path) -> Recipe:
    return read_recipe(path, toy_toolbox(path.parent)[0].stages)


def faults(path: Path) -> list[str]:
    with pytest.raises(RecipeError) as error:
        read(path)
    return error.value.faults


def test_defaults_are_resolved(tmp_path: Path) -> None:
    recipe = read(write_recipe(tmp_path))
    assert [entry.name for entry in recipe.stages] == ["export", "quantize", "prune", "compile"]
    assert recipe.run == "all"
    assert recipe.seed == 0
    assert recipe.task.data == (tmp_path / "data.yaml").resolve()
    assert recipe.stages[1].budgets == recipe.budgets
    assert recipe.resolved()["stages"][2]["config"] == {"strength": 0.5, "optimize": "full"}


def test_five_faults_are_five_with_places_and_near_matches(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path,
        budgets={"accuracy": {"max_dropt": 1.0}},
        target="cpu-ort2",
        stages=[{"quantise": {}}, {"prune": {"strenght": 1}}, {"compile": {"strength": "fast"}}],
    )
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "cpu-ort.yaml").write_text("name: cpu-ort\nengine: onnxruntime\n")
    found = faults(path)
    assert len(found) == 5
    joined = "\n".join(found)
    assert "toy.yaml: budgets.accuracy.max_dropt: unknown key; did you mean 'max_drop_pt'?" in joined
    assert "toy.yaml: target: unknown target 'cpu-ort2'; did you mean 'cpu-ort'?" in joined
    assert "toy.yaml: stages[0]: unknown stage 'quantise'; did you mean 'quantize'?" in joined
    assert "toy.yaml: stages[1].prune.strenght: unknown key; did you mean 'strength'?" in joined
    assert "toy.yaml: stages[2].compile.strength: " in joined


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": "a/b"}, "name"),
        ({"name": None}, "name: missing"),
        ({"stages": []}, "stages: missing"),
        ({"stages": {"export": {}}}, "stages: a list"),
        ({"stages": [{"export": {}, "prune": {}}]}, "stages[0]: one stage"),
        ({"stages": [{"prune": [1]}]}, "stages[0].prune: a mapping"),
        ({"stages": [{"prune": {"on_miss": "stopp"}}]}, "did you mean 'stop'?"),
        ({"stages": [{"prune": {"waive": ["speed"]}}]}, "stages[0].prune.waive"),
        ({"stages": [{"compile": {}}, {"quantize": {}}]}, "list compile last"),
        ({"stages": [{"quantize": {}}, {"export": {}}]}, "list export first"),
        ({"stages": [{"export": {}}, {"prune": {}}, {"export": {}}]}, "export is listed twice"),
        ({"task": {"kind": "vqa", "data": "absent.yaml"}}, "task.data: no file absent.yaml"),
        ({"task": {"data": "data.yaml"}}, "task.kind: missing"),
        ({"run": "once"}, "run: 'once'"),
        ({"seed": -1}, "seed: "),
        ({"budgets": {"latency": {"p90_ms": -1}}}, "budgets.latency.p90_ms: "),
        ({"budgets": {"latency": {"p90_ms": float("nan")}}}, "budgets.latency.p90_ms: "),
        ({"target": {"name": "x", "engine": "ort"}}, "target.engine: "),
        ({"modle": "zoo:x"}, "modle: unknown key; did you mean 'model'"),
    ],
)
def test_each_fault_has_its_place(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    assert any(place in fault for fault in faults(write_recipe(tmp_path, **change)))


def test_checks_from_above_are_reported_with_the_other_faults(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise VlmEdgeError("no such thing", "look elsewhere")

    path = write_recipe(tmp_path, run="once")
    with pytest.raises(RecipeError) as error:
        read_recipe(path, toy_toolbox(tmp_path)[0].stages, check_model=refuse, check_task=refuse)
    assert error.value.faults == [
        "toy.yaml: model: no such thing (look elsewhere)",
        "toy.yaml: task.data: no such thing (look elsewhere)",
        "toy.yaml: run: 'once' is neither 'all' nor 'until-met'",
    ]


def test_a_stage_tightens_and_waives_budgets(tmp_path: Path) -> None:
    stages = [
        {"quantize": {"budgets": {"accuracy": {"max_drop_pt": 0.5}}, "on_miss": "drop"}},
        {"prune": {"waive": ["latency"]}},
        {"prune": {}},
    ]
    first, second, third = read(write_recipe(tmp_path, stages=stages)).stages
    assert first.on_miss is OnMiss.DROP
    assert first.budgets.accuracy is not None
    assert first.budgets.accuracy.max_drop_pt == 0.5
    assert first.budgets.latency is not None
    assert first.budgets.latency.p90_speedup == 3.0
    assert second.budgets.latency is None
    assert third.name == "prune-2"


def test_a_key_written_twice_and_broken_yaml_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text("name: a\nname: b\n")
    assert faults(path) == ["toy.yaml:2:1: not YAML: the key 'name' is written twice"]
    path.write_text("name: [a\n")
    assert faults(path)[0].startswith("toy.yaml:2:1: not YAML: ")
    path.write_text("- a\n")
    assert "a recipe is a mapping" in faults(path)[0]


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VlmEdgeError, match=r"absent\.yaml: no such recipe"):
        read(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VlmEdgeError, match=r"binary\.yaml: can't be read"):
        read(tmp_path / "binary.yaml")


def test_a_stage_may_be_a_bare_name(tmp_path: Path) -> None:
    stages = [*RECIPE["stages"][:1], "quantize"]  # type: ignore[index]
    assert [entry.name for entry in read(write_recipe(tmp_path, stages=stages)).stages] == ["export", "quantize"]
