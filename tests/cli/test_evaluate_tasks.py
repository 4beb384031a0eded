"""What ``vlm-edge evaluate`` prints of each kind of task, and that recipes take the kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_bench import write_task
from tiny_graphs import random_images, save_image, write_dual_encoder

from vlm_edge.api import check_recipe
from vlm_edge.core.stage import TaskSpec
from vlm_edge.errors import RecipeError

RECALLS = [f"recall_at_{cutoff}[{way}]" for cutoff in (1, 5, 10) for way in ("image-to-text", "text-to-image")]
RECIPE = """\
name: found
model: zoo:clip-easyvqa
task: {kind: KIND, data: calibration/easy-vqa-retrieval.yaml}
target: cpu-ort
stages: [{export: {}}, {compile: {}}]
"""


@pytest.fixture
def task(tmp_path: Path) -> TaskSpec:
    """12 images with a caption each, in two slices."""
    part = tmp_path / "data" / "test"
    part.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    words = ["red", "blue", "green", "yes", "no", "what", "color", "it", "is", "red blue", "blue green", "yes no"]
    for number, (image, caption) in enumerate(zip(random_images(12), words, strict=True)):
        save_image(part / f"{number}.png", image)
        rows.append({"file_name": f"{number}.png", "caption": caption, "slice": f"half {number % 2}"})
    return write_task(tmp_path, rows, kind="retrieval")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    write_dual_encoder(tmp_path / "engine")
    return tmp_path / "engine"


def test_every_metric_and_slice_of_one_engine(task: TaskSpec, engine: Path, empty: Any) -> None:
    result = empty.invoke("evaluate", str(engine), "--data", str(task.data), "--json")
    assert result.exit_code == 0
    metrics = [row["metric"] for row in json.loads(result.stdout)["measurements"]]
    parts = ("", "[half 0]", "[half 1]")
    assert metrics == [*(f"{name}{part}" for part in parts for name in ("accuracy", *RECALLS)), "modality_gap"]


def test_fidelity_and_drops_beside_a_baseline(task: TaskSpec, engine: Path, empty: Any, tmp_path: Path) -> None:
    write_dual_encoder(tmp_path / "other", logit_scale=5.0)
    arguments = ["evaluate", str(engine), "--data", str(task.data), "--baseline", str(tmp_path / "other")]
    found = {row["metric"]: row for row in json.loads(empty.invoke(*arguments, "--json").stdout)["measurements"]}
    assert {"accuracy_drop_pt[half 1]", "recall_at_5_drop_pt[text-to-image]", "modality_gap_change"} <= set(found)
    assert found["embedding_cosine"]["value"] == pytest.approx(1, abs=1e-6)  # the same weights, in another folder
    assert found["accuracy_drop_pt"]["value"] == 0 < found["accuracy_drop_pt"]["high"]
    shown = empty.invoke(*arguments).stdout
    assert all(title in shown for title in ("embedding_cosine", "recall_at_1[image-to-text]", "accuracy[half 0]"))


def test_a_recipe_takes_the_kind_of_its_data(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(RECIPE.replace("KIND", "retrieval"))
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("KIND", "classification"))
    task = check_recipe(tmp_path / "good.yaml").task
    assert task is not None
    assert task.kind == "retrieval"
    with pytest.raises(RecipeError, match="is for the task kind retrieval, not classification"):
        check_recipe(tmp_path / "bad.yaml")
