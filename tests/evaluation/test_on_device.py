"""A run that can only write a build kit, and the device that builds, checks, measures and judges it.

The device's engine here is onnxruntime, which really runs; tests/backends/tensorrt/test_kit.py has TensorRT's part.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from color_task import write_color_task
from PIL import Image
from sealed import seal_again

from vlm_edge import api
from vlm_edge.backends import kits
from vlm_edge.backends.base import Array
from vlm_edge.cli.main import main
from vlm_edge.core.budget import Verdict
from vlm_edge.core.record import RunRecord, read_record
from vlm_edge.core.target import KIT_ASKED
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation import on_device
from vlm_edge.evaluation.evaluators import EngineEvaluators
from vlm_edge.evaluation.kit_runs import SUMS, read_kit_run
from vlm_edge.evaluation.latency import LatencySettings
from vlm_edge.evaluation.on_device import DeviceSettings, compile_on_device
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.toolbox import default_toolbox

RECIPE = """
name: kit
model: {model}
task: {{kind: vqa, data: colors.yaml}}
target: {{name: box, engine: onnxruntime, threads: 1, kit: true}}
budgets: {{accuracy: {{max_drop_pt: 100}}, latency: {{p50_ms: 60000, p50_speedup: 0.001}}, size: {{max_ratio: 0.9}}}}
stages:
  - export: {{}}
  - quantize: {{components: {{"*": int8}}, sensitivity: none}}
"""
QUICK = LatencySettings(
    look_rounds=2, seconds=0, warmup_seconds=0.1, round_seconds=0.001, batch_seconds=0, profile_queries=2
)


@pytest.fixture(scope="module")
def place(tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    write_color_task(folder, images=6)
    rows = (folder / "data" / "train" / "metadata.jsonl").read_text()
    (folder / "data" / "test").mkdir()
    for name in {json.loads(row)["file_name"] for row in rows.splitlines()}:
        Image.open(folder / "data" / "train" / name).rotate(180).save(folder / "data" / "test" / name)
    (folder / "data" / "test" / "metadata.jsonl").write_text(rows)
    with (folder / "colors.yaml").open("a") as manifest:
        manifest.write("  test: {from: test}\n")
    (folder / "kit.yaml").write_text(RECIPE.format(model=tiny_blip))
    return folder


@pytest.fixture(scope="module")
def record(place: Path) -> RunRecord:
    toolbox = replace(default_toolbox(), evaluators=EngineEvaluators(QUICK))
    return api.run_recipe(place / "kit.yaml", store=place / "store", runs=place / "runs", toolbox=toolbox)


@pytest.fixture
def shipped(place: Path, record: RunRecord, tmp_path: Path) -> Path:
    """The run's folder, copied to the device."""
    shutil.copytree(place / "runs" / record.name, tmp_path / "shipped")
    return tmp_path / "shipped"


@pytest.fixture
def kit(shipped: Path) -> Path:
    return shipped / "bundle"


@pytest.fixture(scope="module")
def on_the_device(place: Path, record: RunRecord) -> RunRecord:
    return compile_on_device(place / "runs" / record.name, place / "device", DeviceSettings(latency=QUICK))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


class TestRun:
    def test_accuracy_is_emulated_and_no_time_is_measured(self, record: RunRecord) -> None:
        assert record.verdict is Verdict.NOT_MEASURED
        last = record.variants[-1]
        assert last.unmeasured == KIT_ASKED
        assert last.emulated is not None
        assert last.emulated.startswith("emulated: onnxruntime 1.")
        judged = {each.budget: each for each in last.verdicts}
        assert {each.verdict for each in judged.values()} == {Verdict.NOT_MEASURED}
        assert judged["accuracy.max_drop_pt"].measured is not None
        assert judged["size.max_ratio"].measured is None
        assert {each.metric for each in last.measurements}.isdisjoint({"size_bytes", "latency_p50_ms", "peak_rss_mb"})

    def test_every_file_has_a_sum_that_sha256sum_reads(self, shipped: Path, kit: Path) -> None:
        for folder, sums in ((shipped, SUMS), (kit, kits.SUMS_NAME)):
            subprocess.run(["sha256sum", "--check", "--quiet", "--strict", sums], cwd=folder, check=True)
        listed = kits.require_sums(kit, kits.SUMS_NAME)
        there = {path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file()}
        assert there - listed == {"manifest.json", kits.SUMS_NAME}

    def test_golden_runs_are_plain_arrays(self, kit: Path) -> None:
        written, manifest = kits.read_kit(kit)
        for name, part in written.components.items():
            with np.load(kit / part.golden[0], allow_pickle=False) as arrays:
                wanted = [f"0/{each}" for each in manifest.components[name].inputs]
                sides = "12" if part.integer else "1"
                wanted += [f"{side}/{each}" for side in sides for each in manifest.components[name].outputs]
                assert sorted(arrays.files) == sorted(wanted)
        assert written.components["vision_encoder"].integer

    def test_the_summary_says_in_three_lines_what_to_do(self, place: Path, record: RunRecord) -> None:
        result = invoke("--store", place / "store", "--runs", place / "runs", "run", place / "kit.yaml")
        assert result.exit_code == 5, result.stderr
        folder = place / "runs" / record.name
        lines = result.stdout.splitlines()[-3:]
        assert lines[0] == f"{folder}: a build kit, no engine: {KIT_ASKED}"
        assert "Copy this folder to the device" in lines[1]
        assert lines[2] == "vlm-edge compile kit --on-device -o kit-device"


class TestDevice:
    def test_the_record_has_the_device_s_times_sizes_and_verdicts(
        self, place: Path, record: RunRecord, on_the_device: RunRecord
    ) -> None:
        assert read_record(place / "device") == on_the_device
        assert [each.name for each in on_the_device.variants] == ["baseline", record.variants[-1].name]
        last = on_the_device.variants[-1]
        judged = {each.budget: each for each in last.verdicts}
        assert judged["latency.p50_ms"].verdict is Verdict.PASS
        assert judged["latency.p50_speedup"].measured is not None
        assert judged["size.max_ratio"].measured is not None
        assert judged["accuracy.max_drop_pt"].verdict is Verdict.NOT_MEASURED
        assert judged["accuracy.max_drop_pt"].reason == f"{record.variants[-1].emulated}; --data measures it here"
        assert on_the_device.verdict is Verdict.NOT_MEASURED
        (built,) = (run for run in last.runs if run.stage == "compile")
        assert built.facts["components"]["vision_encoder"]["cosine"] > 0.999

    def test_the_bundle_is_an_engine_without_the_kit_s_files(self, place: Path, on_the_device: RunRecord) -> None:
        bundle = place / "device" / "bundle"
        manifest = read_manifest(bundle)
        assert manifest.engine is not None
        assert (manifest.engine.name, manifest.engine.threads) == ("onnxruntime", 1)
        assert not (bundle / kits.KIT_NAME).exists()
        assert not (bundle / kits.GOLDEN_FOLDER).exists()
        assert on_the_device.variants[-1].artifacts["engine"] == api.digest_folder(bundle)
        for command in (("gate", place / "device"), ("report", place / "device")):
            assert invoke(*command).exit_code in (0, 5)

    def test_with_data_accuracy_is_measured_and_every_budget_can_be_met(
        self, place: Path, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(on_device, "DeviceSettings", lambda task: DeviceSettings(task, QUICK))
        result = invoke("compile", shipped, "--on-device", "-o", tmp_path / "device", "--data", place / "colors.yaml")
        found = read_record(tmp_path / "device")
        accuracy = next(each for each in found.variants[-1].verdicts if each.budget == "accuracy.max_drop_pt")
        assert (accuracy.verdict, found.variants[-1].emulated) == (Verdict.PASS, None)
        assert result.exit_code == {"pass": 0, "fail": 3, "undecided": 4}[found.verdict.value], result.output
        assert all((tmp_path / "device" / str(each.outcomes)).is_file() for each in found.variants)

    def test_a_kit_of_no_run_is_built_and_checked(self, kit: Path, tmp_path: Path) -> None:
        result = invoke("compile", kit, "--on-device", "-o", tmp_path / "device", "--json")
        assert result.exit_code == 5, result.stderr
        found = RunRecord.model_validate_json(result.stdout)
        assert found.variants[0].unmeasured == on_device.NO_QUERIES
        assert read_manifest(tmp_path / "device" / "bundle").engine is not None

    def test_an_engine_that_strays_from_the_golden_runs_is_refused_and_nothing_is_left(
        self, kit: Path, tmp_path: Path
    ) -> None:
        part = kits.read_kit(kit)[0].components["vision_encoder"]
        change_golden(
            kit / part.golden[0], lambda name, array: array[..., ::-1] if name.startswith(("1/", "2/")) else array
        )
        with pytest.raises(VlmEdgeError, match=r"vision_encoder: onnxruntime strays from the graph: .*cosine 0\.999"):
            compile_on_device(kit, tmp_path / "device")
        assert {each.name for each in tmp_path.iterdir()} <= {"shipped", "cache"}

    def test_it_needs_no_package_that_compresses(self) -> None:
        modules = "vlm_edge.evaluation.on_device, vlm_edge.backends.tensorrt.kit"
        script = f"import sys, {modules}; print(*{{'torch', 'onnx', 'onnx_ir', 'transformers'}} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.split() == []


def change_golden(path: Path, change: Any) -> None:
    """Rewrite a golden run, and seal the kit again as a forger would."""
    with np.load(path) as arrays:
        changed: dict[str, Array] = {name: np.ascontiguousarray(change(name, arrays[name])) for name in arrays.files}
    np.savez(path, **changed)
    seal_again(path.parents[2])


class TestHostileKits:
    @pytest.mark.parametrize("name", ["kit.json", "golden/vision_encoder/0.npz", "vision_encoder.onnx"])
    def test_an_altered_file_is_found_before_it_is_parsed(self, kit: Path, tmp_path: Path, name: str) -> None:
        with (kit / name).open("ab") as file:
            file.write(b" ")
        with pytest.raises(VlmEdgeError, match=f"{name}: it was altered"):
            compile_on_device(kit, tmp_path / "device")

    @pytest.mark.parametrize("name", ["run.json", "kit/queries.json", "kit/0.png", "bundle/kit.json"])
    def test_an_altered_file_of_the_run_is_found(self, shipped: Path, name: str) -> None:
        with (shipped / name).open("ab") as file:
            file.write(b" ")
        with pytest.raises(VlmEdgeError, match=f"{name}: it was altered since {SUMS} was written"):
            read_kit_run(shipped)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no line for run.json"),
            ("no digest\n", "not a list of sha256 digests"),
            (f"{'0' * 64}  ../../etc/passwd\n", "not a list of sha256 digests"),
            (f"{'0' * 64}  run.json\n", "run.json: it was altered"),
            (f"{'0' * 64}  gone\n", "no file gone"),
        ],
    )
    def test_sums_are_of_plain_files_of_the_folder(self, shipped: Path, text: str, message: str) -> None:
        (shipped / SUMS).write_text(text)
        with pytest.raises(VlmEdgeError, match=message):
            read_kit_run(shipped)

    def test_a_link_is_refused(self, shipped: Path) -> None:
        (shipped / "run.json").rename(shipped / "elsewhere.json")
        (shipped / "run.json").symlink_to("elsewhere.json")
        with pytest.raises(VlmEdgeError, match="a link"):
            read_kit_run(shipped)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 2}, "format: "),
            ({"threads": 0}, "threads: "),
            ({"components": {}}, "components: "),
            ({"more": 1}, "more: "),
            ({"timing_cache": "../cache"}, "timing_cache: "),
            ({"engine": "no-such-engine"}, "engine 'no-such-engine' is unknown"),
        ],
    )
    def test_kit_json_is_held_to_its_bounds(
        self, kit: Path, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        content = json.loads((kit / kits.KIT_NAME).read_text()) | change
        (kit / kits.KIT_NAME).write_text(json.dumps(content))
        seal_again(kit)
        with pytest.raises(VlmEdgeError, match=message):
            compile_on_device(kit, tmp_path / "device")

    def test_golden_runs_that_are_not_the_component_s_are_named(self, kit: Path, tmp_path: Path) -> None:
        part = kits.read_kit(kit)[0].components["vision_encoder"]
        change_golden(kit / part.golden[0], lambda name, array: array[..., :-1] if name == "0/pixel_values" else array)
        with pytest.raises(VlmEdgeError, match=r"0\.npz: input 'pixel_values': expected"):
            compile_on_device(kit, tmp_path / "device")

    @pytest.mark.parametrize("how", ["pickle", "no zip", "truncated", "large", "shape"])
    def test_arrays_that_are_none_or_too_large_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        path = tmp_path / "0.npz"
        np.savez(path, x=np.array([{}], dtype=object) if how == "pickle" else np.zeros(100))
        content = path.read_bytes()
        if how == "no zip":
            path.write_bytes(b"x" * 100)
        elif how == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif how == "shape":
            path.write_bytes(content.replace(b"(100,)", b"(1e5,)"))
        elif how == "large":
            monkeypatch.setattr(kits, "MOST_GOLDEN_BYTES", 100)
        with pytest.raises(VlmEdgeError, match=r"0\.npz: "):
            kits.read_arrays(path)

    def test_a_link_beside_a_graph_is_not_copied(self, kit: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("of the device's user")
        (kit / "vision_encoder.onnx.data2").symlink_to(tmp_path / "secret")
        with pytest.raises(VlmEdgeError, match="a link"):
            compile_on_device(kit, tmp_path / "device")

    def test_a_folder_that_is_no_kit_is_named(self, tmp_path: Path, place: Path, on_the_device: RunRecord) -> None:
        assert on_the_device.name == "kit"
        with pytest.raises(VlmEdgeError, match="no file kit/SHA256SUMS"):
            compile_on_device(place / "device", tmp_path / "out")
