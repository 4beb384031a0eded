"""docs/python-api.md: its examples run, one after another, on tiny models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from doc_pages import PAGES, fences
from photo_folders import write_photos
from PIL import Image
from shared_exports import exported_once
from tiny_families import TINY
from toy_toolbox import toy_toolbox, write_recipe

import vlm_edge
from vlm_edge import api

EXAMPLES = [code for code in fences(PAGES["docs/python-api.md"], "python") if "vlm_edge." in code]
EXPORT = 'vlm_edge.run_stage("export", {}, "zoo:clip-easyvqa", Path("graphs"))\n'


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with two photos."""
    monkeypatch.chdir(tmp_path)
    for name, color in (("photo", "red"), ("other", "blue")):
        Image.new("RGB", (40, 30), color).save(f"{name}.png")
    return tmp_path


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "docs/python-api.md", "exec"), names)


def example(word: str) -> str:
    """The one example that holds a word."""
    (found,) = (code for code in EXAMPLES if word in code)
    return found


def test_every_example_is_tried_here() -> None:
    words = ("runs/quickstart/bundle", "clip =", "captioner =", "llava =", "run_recipe(", EXPORT, "gate_run(", "except")
    assert [code for code in EXAMPLES if not any(word in code for word in words)] == []


def test_the_device_s_examples_run(
    workplace: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    llava = exported_once(tmp_path_factory, "LLaVA-1.5", TINY["LLaVA-1.5"].write, TINY["LLaVA-1.5"].model)
    runs = {
        "quickstart": request.getfixturevalue("tiny_blip_graphs").folder,
        "clip-zero-shot": request.getfixturevalue("tiny_clip_graphs").folder,
        "captions": request.getfixturevalue("tiny_captioner_graphs").folder,
        "llava": llava.folder,
    }
    for name, folder in runs.items():
        (workplace / "runs" / name).mkdir(parents=True)
        (workplace / "runs" / name / "bundle").symlink_to(folder)
    names: dict[str, Any] = {}
    for code in EXAMPLES[: EXAMPLES.index(example("llava =")) + 1]:
        run(code, names)
    run(example("except"), names)
    shown = capsys.readouterr().out
    assert "is there a red shape?" in shown
    assert "(1, 2)" in shown
    assert "no-such-folder" in shown


def test_a_recipe_is_run_and_judged_again_as_shown(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "recipes").mkdir()
    (workplace / "model").mkdir()
    (workplace / "model" / "model.txt").write_text("weights\n")
    toolbox, _ = toy_toolbox(workplace / "model")
    monkeypatch.setattr(api, "default_toolbox", lambda: toolbox)  # the page's examples hand in none
    write_recipe(workplace / "recipes", name="quickstart").rename(workplace / "recipes" / "quickstart.yaml")
    names: dict[str, Any] = {"vlm_edge": vlm_edge}
    run(example("run_recipe("), names)
    run(example("gate_run("), names)
    shown = capsys.readouterr().out
    assert "pass compile" in shown
    assert "latency_p90_speedup" in shown
    assert (workplace / "runs" / "quickstart" / "run.json").is_file()


def test_single_stages_run_as_shown(
    workplace: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for the export of the zoo's model, in whose place is a tiny one's."""
    shutil.copytree(request.getfixturevalue("tiny_clip_graphs").folder, workplace / "graphs")
    write_photos(workplace, "classification", images=12)
    run(example(EXPORT).replace(EXPORT, ""), {"vlm_edge": vlm_edge, "Path": Path})
    assert capsys.readouterr().out.splitlines()[-1] == "(1, 32)"
