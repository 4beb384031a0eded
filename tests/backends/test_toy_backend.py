"""The backend of docs/writing-a-backend.md is installed as it stands there, and a recipe is run with it."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from color_task import write_color_task
from PIL import Image

from vlm_edge import api, backends
from vlm_edge.cli.main import main
from vlm_edge.core.budget import Verdict
from vlm_edge.core.record import RunRecord
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.evaluators import EngineEvaluators
from vlm_edge.evaluation.latency import LatencySettings
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import load_pipeline
from vlm_edge.toolbox import default_toolbox

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-backend.md"
RECIPE = """
name: toy
model: {model}
task: {{kind: vqa, data: colors.yaml}}
target: {{name: box, engine: toy, threads: 1}}
budgets: {{latency: {{p50_ms: 60000}}, size: {{max_ratio: 0.9}}}}
stages:
  - export: {{}}
  - quantize: {{components: {{"*": int8}}, sensitivity: none}}
  - compile: {{}}
"""
QUICK = LatencySettings(
    look_rounds=2, seconds=0, warmup_seconds=0.1, round_seconds=0.001, batch_seconds=0, profile_queries=2
)


def install(site: Path, page: str) -> None:
    """Install the page's package into ``site`` as pip would: its modules, and the metadata with its entry points."""
    for name, code in re.findall(r"^`(\w+/\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", page, re.DOTALL | re.MULTILINE):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(code)
    (project,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    write_metadata(site, tomllib.loads(project)["project"])


def write_metadata(site: Path, project: dict[str, Any]) -> None:
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items()) for group, each in groups]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of installed packages that this process and those that it starts import from."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        backends.installed.cache_clear()
        yield folder
    backends.installed.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_backend"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def toy(site: Path) -> Path:
    install(site, PAGE.read_text(encoding="utf-8"))
    backends.installed.cache_clear()
    return site


@pytest.fixture(scope="module")
def place(tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and its data."""
    folder = tmp_path_factory.mktemp("toy")
    write_color_task(folder, images=6)
    test = folder / "data" / "test"
    test.mkdir()
    rows = (folder / "data" / "train" / "metadata.jsonl").read_text()
    for name in {json.loads(row)["file_name"] for row in rows.splitlines()}:
        Image.open(folder / "data" / "train" / name).rotate(180).save(test / name)
    (test / "metadata.jsonl").write_text(rows)
    with (folder / "colors.yaml").open("a") as manifest:
        manifest.write("  test: {from: test}\n")
    (folder / "toy.yaml").write_text(RECIPE.format(model=tiny_blip))
    return folder


@pytest.fixture(scope="module")
def record(toy: Path, place: Path) -> RunRecord:
    assert (toy / "toy_backend").is_dir()
    toolbox = replace(default_toolbox(), evaluators=EngineEvaluators(QUICK))
    return api.run_recipe(place / "toy.yaml", store=place / "store", runs=place / "runs", toolbox=toolbox)


def invoke(place: Path, *arguments: str) -> Result:
    options = ["--store", str(place / "store"), "--runs", str(place / "runs")]
    return CliRunner().invoke(main, [*options, *arguments])


def test_a_recipe_is_run_and_judged(record: RunRecord) -> None:
    assert [variant.name for variant in record.variants] == ["baseline", "quantize", "compile"]
    assert record.verdict is Verdict.PASS
    last = record.variants[-1]
    facts = {run.stage: run.facts for run in last.runs}
    assert facts["compile"]["engine"] == "toy"
    assert facts["quantize"]["components"]["vision_encoder"]["operators"]["fake_quantized"]["MatMul"] > 0
    assert all(part["cosine"] > 0.999 for part in facts["compile"]["components"].values())
    measured = {each.metric for each in last.measurements}
    assert {"accuracy", "latency_p50_ms", "latency_p50_speedup", "peak_rss_mb", "size_ratio"} <= measured
    assert record.host["packages"]["toy-backend"] == "1.0"


def test_the_bundle_answers(place: Path, record: RunRecord) -> None:
    bundle = place / "runs" / record.name / "bundle"
    manifest = read_manifest(bundle)
    assert manifest.engine is not None
    assert (manifest.engine.name, manifest.engine.version) == ("toy", "1.0")
    assert {Path(row.file).suffix for row in manifest.components.values()} == {".toy"}
    image = next((place / "data" / "test").glob("*.png"))
    pipeline: Any = load_pipeline(bundle)
    answered = invoke(place, "answer", str(bundle), str(image), "what color is it", "--json")
    assert answered.exit_code == 0, answered.stderr
    assert pipeline.answer(image, "what color is it") in answered.stdout


def test_it_is_gated_and_reported(place: Path, record: RunRecord) -> None:
    run = str(place / "runs" / record.name)
    gated = invoke(place, "gate", run)
    assert gated.exit_code == 0, gated.stderr
    reported = invoke(place, "report", run, "--html", "-o", str(place / "report.html"))
    assert reported.exit_code == 0, reported.stderr
    page = (place / "report.html").read_text(encoding="utf-8")
    assert "toy" in page
    assert "vision_encoder" in page


def test_explain_refuses_it_with_the_next_step(place: Path, record: RunRecord) -> None:
    found = invoke(place, "explain", str(place / "runs" / record.name))
    assert found.exit_code == 1
    assert "toy can't be explained here, so NOT MEASURED" in found.stderr
    assert "hint: explain the folder of graphs" in found.stderr


@pytest.mark.usefixtures("toy")
def test_doctor_and_check_know_it(place: Path) -> None:
    assert re.search(r"ok +toy +runs here", invoke(place, "doctor").stdout)
    text = (place / "toy.yaml").read_text()
    (place / "dynamic.yaml").write_text(text.replace('"*": int8', '"*": int8-dynamic'))
    refused = invoke(place, "check", str(place / "dynamic.yaml"))
    assert refused.exit_code == 2
    assert "int8-dynamic is for onnxruntime; the target's engine is toy" in refused.stderr


def test_the_page_names_every_field_of_a_row() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## What a row says")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == {each.name for each in fields(backends.BackendSpec)}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:SPEC", "engine broken: no_such_module:SPEC can't be imported: No module named"),
        ("vlm_edge.backends:NONE", "engine broken: vlm_edge.backends:NONE can't be imported: "),
        ("vlm_edge.backends:BACKENDS", "engine broken: vlm_edge.backends:BACKENDS is no BackendSpec of that name"),
    ],
)
def test_a_broken_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    groups = {backends.ENTRY_POINTS: {"broken": value}}
    write_metadata(tmp_path, {"name": "broken", "version": "0", "entry-points": groups})
    monkeypatch.syspath_prepend(tmp_path)
    backends.installed.cache_clear()
    with pytest.raises(VlmEdgeError) as error:
        backends.backend("broken")
    assert error.value.message.startswith(message)
    assert backends.backend("onnxruntime").name == "onnxruntime"
    backends.installed.cache_clear()


def test_two_backends_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {backends.ENTRY_POINTS: {"openvino": "mine:SPEC"}}
    write_metadata(tmp_path, {"name": "mine", "version": "0", "entry-points": groups})
    monkeypatch.syspath_prepend(tmp_path)
    backends.installed.cache_clear()
    with pytest.raises(VlmEdgeError, match="there is a backend of that name"):
        backends.backends()
    backends.installed.cache_clear()
