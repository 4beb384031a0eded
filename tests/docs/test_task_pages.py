"""docs/tasks/: the photos, manifest and recipe of each page pass the check, and its Python runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from doc_pages import PAGES, fences
from photo_folders import write_part
from PIL import Image

from vlm_edge.api import check_recipe
from vlm_edge.data.dataset import TaskKind

PAGES_BY_KIND = {
    "vqa": "question-answering",
    "captioning": "captioning",
    "classification": "classification",
    "retrieval": "retrieval",
    "hallucination": "hallucination",
}
GRAPHS = {
    "vqa": "tiny_blip_graphs",
    "hallucination": "tiny_blip_graphs",
    "captioning": "tiny_captioner_graphs",
    "classification": "tiny_clip_graphs",
    "retrieval": "tiny_clip_graphs",
}
each_kind = pytest.mark.parametrize("kind", PAGES_BY_KIND)


def page_of(kind: str) -> Path:
    return PAGES[f"docs/tasks/{PAGES_BY_KIND[kind]}.md"]


def test_every_task_has_a_page() -> None:
    assert set(PAGES_BY_KIND) == set(GRAPHS) == set(get_args(TaskKind))
    assert len([name for name in PAGES if name.startswith("docs/tasks/")]) == len(PAGES_BY_KIND)


@each_kind
def test_the_data_and_the_recipe_have_no_fault(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With a tiny model in place of the published one, and as many of the page's lines as its budgets need."""
    manifest, recipe = fences(page_of(kind), "yaml")
    (lines,) = fences(page_of(kind), "json")
    rows: list[dict[str, Any]] = list(map(json.loads, lines.splitlines()))
    for seed, part in enumerate(("train", "test")):
        write_part(tmp_path / "photos" / part, rows, 400, seed)
    assert yaml.safe_load(manifest)["kind"] == yaml.safe_load(recipe)["task"]["kind"] == kind
    model = request.getfixturevalue(GRAPHS[kind].removesuffix("_graphs"))
    (tmp_path / "photos.yaml").write_text(manifest)
    (tmp_path / "recipe.yaml").write_text(re.sub(r"(?m)^model: .*$", f"model: {model}", recipe))
    monkeypatch.chdir(tmp_path)
    checked = check_recipe(Path("recipe.yaml"))
    assert checked.name == PAGES_BY_KIND[kind]


@each_kind
def test_the_python_runs(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "runs" / PAGES_BY_KIND[kind]
    run.mkdir(parents=True)
    (run / "bundle").symlink_to(request.getfixturevalue(GRAPHS[kind]).folder)
    for name, color in (("photo", "red"), ("other", "blue")):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = fences(page_of(kind), "python")
    exec(code, {})
    assert capsys.readouterr().out.strip()
