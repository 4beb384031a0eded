from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from toy_toolbox import RECIPE, toy_toolbox, write_recipe

from vlm_edge.checkpoints.sources import resolve_model
from vlm_edge.core.recipe import Checks, OnMiss, Recipe, read_recipe
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
        ({"target": {"name": "x", "engine": ""}}, "target.engine: "),
        ({"modle": "zoo:x"}, "modle: unknown key; did you mean 'model'"),
        ({"stages": [{"prune": {"waive": [["speed"]]}}]}, "stages[0].prune.waive: a list of accuracy, fidelity"),
        ({"stages": [{"prune": {"on_miss": ["stop"]}}]}, "stages[0].prune.on_miss: unknown ['stop']"),
        ({"stages": [{"prune": {"strength": True}}]}, "strength: input should be a valid number (got true)"),
        ({"stages": [{"prune": {"strength": "1"}}]}, "strength: input should be a valid number (got '1')"),
        ({"stages": [{"prune": {"budgets": [1]}}]}, "stages[0].prune.budgets: give a mapping (got [1])"),
        ({"stages": ["export"] * 101}, "stages: at most 100 (got 101)"),
        ({"seed": True}, "seed: a whole number from 0 to 2**32 - 1 (got true)"),
        ({"name": "n" * 101}, "name: 'nnn"),
        ({"model": "m" * 2000}, "model: a zoo name, a folder or a Hub id (got 'mmm"),
        ({"model": ["m"]}, "model: a zoo name, a folder or a Hub id (got ['m'])"),
        ({"target": "t" * 300}, "target: unknown target 'ttt"),
        ({"target": "t" * 300 + ".yaml"}, "target: unknown target 'ttt"),
        ({"target": {"name": "x", "engine": "openvino", "threads": True}}, "target.threads: input should be a valid"),
        ({"target": {"name": "x", "engine": "openvino", "price_per_hour": 1e400}}, "target.price_per_hour: "),
        ({"task": {"kind": "vqa", "data": "d" * 500}}, "task.data: no file 'ddd"),
        ({"task": {"kind": "vqa", "data": 5}}, "task.data: input is not a valid path"),
        ({"task": {"kind": ["vqa"], "data": "data.yaml"}}, "task.kind: input should be a valid string (got ['vqa'])"),
        ({"budgets": {"throughput": {"batch": True, "at_least_per_s": 1}}}, "budgets.throughput.batch: "),
        (
            {"budgets": {"accuracy": {"slices": {"a": {"min": 1}}}}},
            "accuracy.slices.a.min: unknown key; known: at_least, max_drop_pt, min_ratio",
        ),
        ({"budgets": {"accuracy": [[1]]}}, "budgets.accuracy: give a mapping (got [[1]])"),
    ],
)
def test_each_fault_has_its_place(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    assert any(place in fault for fault in faults(write_recipe(tmp_path, **change)))


def test_checks_from_above_are_reported_with_the_other_faults(tmp_path: Path) -> None:
    refuse = Mock(side_effect=VlmEdgeError("no such thing", "look elsewhere"))
    checks = Mock(
        spec=Checks, model=refuse, task=refuse, target=lambda target: (target, [("engine", "no such engine")])
    )

    path = write_recipe(tmp_path, run="once")
    with pytest.raises(RecipeError) as error:
        read_recipe(path, toy_toolbox(tmp_path)[0].stages, checks=checks)
    assert error.value.faults == [
        "toy.yaml: model: no such thing (look elsewhere)",
        "toy.yaml: task.data: no such thing (look elsewhere)",
        "toy.yaml: target.engine: no such engine",
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
    assert faults(path) == ["toy.yaml:2:1: the key 'name' is written twice; the first is in line 1"]
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


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
def test_a_number_is_finite(tmp_path: Path, value: str) -> None:
    path = write_recipe(tmp_path, stages=[{"prune": {"strength": "VALUE"}}], budgets={"size": {"max_mb": "VALUE"}})
    path.write_text(path.read_text().replace('"VALUE"', value))
    number = float(value.replace(".", "")) if value != "1e999" else float("inf")
    assert faults(path) == [
        f"toy.yaml: budgets.size.max_mb: input should be a finite number (got {number})",
        f"toy.yaml: stages[0].prune.strength: input should be a finite number (got {number})",
    ]


@pytest.mark.parametrize("ref", ["m" * 300, "~nobodyhere/model", "a\0b"])
def test_a_model_that_no_folder_can_be_called_is_not_there(ref: str) -> None:
    with pytest.raises(VlmEdgeError, match="no such folder"):
        resolve_model(ref)


def test_faults_by_the_thousand_are_counted_and_cheap(tmp_path: Path) -> None:
    wrong = {f"key{number}": 1 for number in range(20_000)}
    found = faults(write_recipe(tmp_path, **wrong))
    assert found[-1] == "toy.yaml: and 19,980 unknown keys more"
    assert len(found) == 21
    found = faults(write_recipe(tmp_path, stages=[{"prune": wrong}]))
    assert found[-1] == "toy.yaml: stages[0].prune: and 19,980 more"
    assert all(len(fault) < 300 for fault in found)


def test_an_alias_bomb_is_refused_where_it_is_too_much(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    path.write_text("\n".join(lines))
    assert faults(path) == ["toy.yaml:5:36: more than 100,000 keys and values (what an alias repeats counts each time)"]


def test_a_target_with_a_fault_in_its_yaml_is_named_by_line(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, target="box")
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "box.yaml").write_text("name: box\nengine: openvino\nname: box2\n")
    assert faults(path) == ["box.yaml:3:1: the key 'name' is written twice; the first is in line 1"]


def test_mutated_recipes_are_read_or_refused(tmp_path: Path) -> None:
    """Random values at random places of a recipe: a Recipe or faults of bounded length, and no other exception."""
    values: list[Any] = [None, True, -1, 0, 1e308, float("nan"), "", "x", "/", "~", "x" * 3000, [], [[1]], {}, {"a": 1}]
    values += [
        ["export"],
        {"export": {}},
        {"prune": None},
        [{"prune": {"budgets": {"latency": 3}}}],
        2**70,
        "..",
        "\x7f",
    ]
    generator = random.Random(7)
    refusals = []
    for _ in range(150):
        recipe: Any = copy.deepcopy(RECIPE)
        for _ in range(generator.randint(1, 3)):
            place = recipe
            while isinstance(place, dict | list) and place:
                key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if not isinstance(place[key], dict | list) or generator.random() < 0.4:
                    place[key] = generator.choice(values)
                    break
                place = place[key]
        try:
            read(write_recipe(tmp_path, **recipe))
        except RecipeError as error:
            refusals.append(error.faults)
    assert len(refusals) > 75
    assert max(len(fault) for found in refusals for fault in found) < 500
