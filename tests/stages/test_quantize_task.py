"""Quantization judged by the task's metric: which layers go back to float, and when that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from known_facts import known
from planted_layers import BAD, write_colors, write_planted

from vlm_edge.api import check_recipe
from vlm_edge.core.artifact import Artifact, digest_folder
from vlm_edge.core.stage import StageInputs, StageWork, TaskSpec
from vlm_edge.core.target import Target
from vlm_edge.errors import RecipeError, VlmEdgeError
from vlm_edge.evaluation.accuracy import evaluate
from vlm_edge.evaluation.stage_metric import DrawnMetric
from vlm_edge.stages.quantize import SPEC, QuantizeConfig
from vlm_edge.statistics.intervals import paired_change

VISION = {"vision_encoder": "int8", "*": "none"}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_planted(tmp_path_factory.mktemp("planted") / "g")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskSpec:
    return write_colors(tmp_path_factory.mktemp("colors"), images=180)


def quantize(folder: Path, source: Artifact, task: TaskSpec, **config: Any) -> tuple[Path, dict[str, Any]]:
    work = StageWork(out=folder / "out", scratch=folder / "scratch", metric=DrawnMetric())
    work.out.mkdir(parents=True)
    work.scratch.mkdir()
    target = Target(name="box", engine="onnxruntime", threads=1, isa="x86-vnni")
    SPEC.run(QuantizeConfig(samples=16, **config), StageInputs(source, task=task, target=target), work)
    return work.out, json.loads(json.dumps(known("quantize", work.facts)))


def test_exactly_the_planted_layer_goes_back_to_float(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    """It is the last that noise at the outputs would name."""
    folder, facts = quantize(tmp_path, graphs, task, components=VISION, max_drop_pt=5.0)
    vision, found = facts["components"]["vision_encoder"], facts["task_drop"]
    (left,) = vision["float_layers"]
    assert left.endswith(BAD)
    assert vision["float_because"] == {left: "max_drop_pt"}
    assert vision["sensitivity"][-1]["name"] == left
    assert vision["outputs"]["image_embeds"]["cosine"] > 0.999
    assert vision["operators"]["integer"] == {"MatMulIntegerToFloat": 3}
    assert vision["operators"]["floating"] == {"MatMul": 1}
    (row,) = found["left_float"]
    assert (row["component"], row["name"]) == ("vision_encoder", left)
    assert found["before"]["value"] == row["without_it"]["value"] == pytest.approx(100 * 2 / 3, abs=8)
    assert found["after"]["value"] == 0
    assert 0 < found["after"]["high"] <= found["max_drop_pt"] < found["before"]["low"]
    assert facts["metric_samples"] == {"split": "train", "images": 150, "samples": 150}
    assert len(found["tried"]) <= 9
    accuracy = [np.mean(evaluate(each, task, threads=1).scores["accuracy"]) for each in (graphs.path, folder)]
    assert accuracy == [1.0, 1.0]


def test_noise_that_costs_no_answer_leaves_no_layer_float(task: TaskSpec, tmp_path: Path) -> None:
    """Without the bound it is noise that decides, and the layer that matters stays in INT8."""
    source = write_planted(tmp_path / "noisy", noisy=True)
    _, by_noise = quantize(tmp_path / "noise", source, task, components=VISION)
    _, by_task = quantize(tmp_path / "task", source, task, components=VISION, max_drop_pt=5.0)
    before, after = (facts["components"]["vision_encoder"] for facts in (by_noise, by_task))
    assert set(before["float_because"].values()) == {"noise"}
    assert not any(name.endswith(BAD) for name in before["float_layers"])
    assert list(after["float_because"].values()) == ["max_drop_pt"]
    assert after["float_layers"][0].endswith(BAD)
    assert after["outputs"]["image_embeds"]["cosine"] < 0.98 < before["outputs"]["image_embeds"]["cosine"]


def test_the_interval_is_the_one_that_budgets_are_judged_on(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    """Without a fallback the destroyed layer answers the first label always: a third is right."""
    found = quantize(tmp_path, graphs, task, components=VISION, max_drop_pt=99.0, metric_images=60)[1]["task_drop"]
    assert (found["left_float"], found["before"], len(found["tried"])) == ([], found["after"], 1)
    right = round(60 * (1 - found["before"]["value"] / 100))
    after = np.arange(60) < right
    drop = paired_change(np.ones(60), after, np.arange(60), seed=0).drop
    assert [found["before"]["low"], found["before"]["high"]] == pytest.approx(
        [100 * drop.low, 100 * drop.high], abs=0.5
    )


def test_layers_are_ranked_by_the_task_s_metric(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    """The ranking names the planted layer first, and so the fallback takes it at once."""
    settings = {"components": VISION, "sensitivity": "task", "metric_images": 150}
    _, facts = quantize(tmp_path / "ranked", graphs, task, **settings)
    ranked = facts["components"]["vision_encoder"]["sensitivity"]
    assert ranked[0]["name"].endswith(BAD)
    assert ranked[0]["drop_pt"]["low"] > 50
    assert [row["drop_pt"]["value"] for row in ranked[1:]] == [0, 0, 0]
    assert facts["components"]["vision_encoder"]["float_layers"] == []
    assert "task_drop" not in facts
    layers = {row["name"]: row for row in facts["components"]["vision_encoder"]["layers"]}
    assert layers[ranked[0]["name"]]["sensitivity_drop_pt"] == ranked[0]["drop_pt"]["value"]
    _, both = quantize(tmp_path / "both", graphs, task, **settings, max_drop_pt=5.0)
    (row,) = both["task_drop"]["left_float"]
    assert row["name"].endswith(BAD)
    assert row["drop_pt"] == ranked[0]["drop_pt"]
    assert [each["left_float"] for each in both["task_drop"]["tried"]] == [0, 4, 2, 1]


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-weights"])
def test_other_schemes_fall_back_by_layers_too(scheme: str, graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    settings = {"components": {"vision_encoder": scheme, "*": "none"}, "max_drop_pt": 5.0}
    _, facts = quantize(tmp_path, graphs, task, **settings)
    vision = facts["components"]["vision_encoder"]
    assert len(vision["sensitivity"]) == (4 if scheme == "int8-dynamic" else 2)  # small weights stay float
    left = [name for name in vision["float_layers"] if name.endswith(BAD)]
    assert left == vision["float_layers"]
    assert len(left) == (1 if scheme == "int8-dynamic" else 0)  # its data is what breaks it


def test_a_bound_that_is_met_changes_nothing(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    settings = {"components": VISION, "keep_float": [f"*{BAD}"]}
    plain, _ = quantize(tmp_path / "plain", graphs, task, **settings)
    judged, facts = quantize(tmp_path / "judged", graphs, task, **settings, max_drop_pt=5.0)
    assert digest_folder(plain) == digest_folder(judged)
    assert facts["task_drop"]["left_float"] == []
    assert set(facts["components"]["vision_encoder"]["float_because"].values()) == {"keep_float"}


def test_a_bound_that_float_layers_can_t_meet_is_an_error(task: TaskSpec, tmp_path: Path) -> None:
    """The text encoder's table, which is no layer, holds nothing of the labels in INT8."""
    source = write_planted(tmp_path / "drowned", drowned=True)
    assert np.mean(evaluate(source.path, task, threads=1).scores["accuracy"]) == 1.0
    with pytest.raises(
        VlmEdgeError, match=r"with all 5 layers float .* still drops by 6\d\.\d\d points \[.*\] on 150 images"
    ) as error:
        quantize(tmp_path / "run", source, task, components={"*": "int8"}, max_drop_pt=5.0)
    assert "components: {NAME: none}" in str(error.value.hint)
    _, facts = quantize(tmp_path / "float", source, task, components=VISION, max_drop_pt=5.0)
    assert facts["task_drop"]["after"]["value"] == 0


def test_too_few_images_are_refused_with_the_number_needed(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    with pytest.raises(VlmEdgeError, match=r"164 images can't show a drop below 2\.29 .*; 765 are needed for 0\.5"):
        quantize(tmp_path / "a", graphs, task, components=VISION, max_drop_pt=0.5)
    with pytest.raises(VlmEdgeError, match=r"60 images can't show a drop below .*; 73 are needed for 5"):
        quantize(tmp_path / "b", graphs, task, components=VISION, max_drop_pt=5.0, metric_images=60)


def test_a_recipe_with_too_few_images_is_refused_before_anything_runs(task: TaskSpec, tmp_path: Path) -> None:
    recipe = {
        "name": "r",
        "model": "zoo:clip-easyvqa",
        "task": {"kind": "classification", "data": str(task.data)},
        "target": "cpu-ort",
        "stages": [{"export": {}}, {"quantize": {"samples": 16, "max_drop_pt": 0.5}}],
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    with pytest.raises(RecipeError, match=r"r\.yaml: stages\[1\]\.quantize\.max_drop_pt: .*765 are needed for 0\.5"):
        check_recipe(tmp_path / "r.yaml")
    recipe["stages"] = [{"export": {}}, {"quantize": {"samples": 16, "max_drop_pt": 5.0}}]
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert check_recipe(tmp_path / "r.yaml").name == "r"


def test_without_a_metric_the_stage_says_so(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    work = StageWork(out=tmp_path / "out", scratch=tmp_path / "scratch")
    inputs = StageInputs(graphs, task=task, target=Target(name="box", engine="onnxruntime", threads=1, isa="x86-vnni"))
    with pytest.raises(VlmEdgeError, match="nothing measures the task's metric"):
        SPEC.run(QuantizeConfig(max_drop_pt=1.0), inputs, work)


def test_int8_dynamic_keeps_what_it_is_told_to_in_float(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    settings = {"components": {"vision_encoder": "int8-dynamic", "*": "none"}, "keep_float": ["vision_encoder/*louder"]}
    folder, facts = quantize(tmp_path, graphs, task, **settings)
    vision = facts["components"]["vision_encoder"]
    assert vision["operators"]["integer"] == {"DynamicQuantizeMatMul": 3}
    (left,) = vision["float_layers"]
    assert vision["float_because"] == {left: "keep_float"}
    weights = {each.name: each.data_type for each in onnx.load(folder / "vision_encoder.onnx").graph.initializer}
    assert weights["louder_weight"] == onnx.TensorProto.FLOAT
    assert {row["name"] for row in vision["sensitivity"]}.isdisjoint({left})
