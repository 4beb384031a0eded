"""TensorRT's build kit: its scripts, its profiles, and plans that NVIDIA's own builder makes of it on a CPU.

The builder is TensorRT-RTX's, which shares TensorRT's network API. Loading a plan takes a driver, so it ends there.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from family_checkpoints import Exported
from rtx import nvidia
from sealed import seal_again
from tensorrt_names import published

from vlm_edge.api import run_stage
from vlm_edge.backends import kits
from vlm_edge.backends.lowering import lowering_of
from vlm_edge.backends.tensorrt import cuda_memory
from vlm_edge.backends.tensorrt.build import plan_of
from vlm_edge.backends.tensorrt.profiles import dimension_ranges, profile_shapes
from vlm_edge.backends.tensorrt_rtx.kit import TensorRtxKit
from vlm_edge.cli.main import main
from vlm_edge.core.stage import SilentProgress
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.evaluators import EngineEvaluators
from vlm_edge.evaluation.on_device import build_engine
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.passes.half_precision import HALVES, HalfPrecision
from vlm_edge.processing.manifest import write_manifest
from vlm_edge.stages.compile_references import reference_runs
from vlm_edge.stages.quantize_attempt import quantize_graph

TARGET = "jetson-orin-tensorrt"


@pytest.fixture(scope="module")
def graphs(tiny_clip_graphs: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's graphs, the text encoder in INT8."""
    folder = tmp_path_factory.mktemp("int8") / "graphs"
    shutil.copytree(tiny_clip_graphs.folder, folder)
    path = folder / "text_encoder.onnx"
    runs = reference_runs(folder, tiny_clip_graphs.manifest, 1, 0, folder.parent)["text_encoder"]
    lowering = lowering_of("tensorrt", "cuda")
    save_graph(quantize_graph(load_graph(path), "int8", [feed for feed, _ in runs], lowering), path)
    write_manifest(folder, tiny_clip_graphs.manifest)
    return folder


@pytest.fixture(scope="module")
def made(graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[str]]:
    """The kit that the command writes, its exit code, and its last three lines."""
    out = tmp_path_factory.mktemp("made") / "kit"
    done = CliRunner().invoke(main, ["compile", str(graphs), "-o", str(out), "--target", TARGET])
    return out, done.exit_code, done.stdout.splitlines()[-3:]


@pytest.fixture
def kit(made: tuple[Path, int, list[str]], tmp_path: Path) -> Path:
    shutil.copytree(made[0], tmp_path / "kit")
    return tmp_path / "kit"


def test_where_tensorrt_is_missing_a_kit_is_written_and_the_exit_code_is_5(made: tuple[Path, int, list[str]]) -> None:
    folder, code, (why, where, command) = made
    assert code == 5
    assert why.startswith(f"{folder}: a build kit, no engine: ")
    assert "the Python package tensorrt is not installed" in why
    assert "Copy this folder to the device" in where
    assert command == "vlm-edge compile kit --on-device -o kit-device"


def test_its_profiles_are_those_that_a_plan_is_built_with(kit: Path) -> None:
    written, manifest = kits.read_kit(kit)
    assert (written.engine, written.target, written.threads) == ("tensorrt", TARGET, 6)
    ranges = dimension_ranges(manifest, 16)
    for name, part in written.components.items():
        assert part.profile == profile_shapes(manifest.components[name], ranges)
        assert part.integer == (name == "text_encoder")


def test_a_kit_of_bfloat16_has_golden_runs_but_no_engine_emulates_it_here(graphs: Path, tmp_path: Path) -> None:
    shutil.copytree(graphs, tmp_path / "graphs")
    model = load_graph(graphs / "vision_encoder.onnx")
    HalfPrecision(HALVES["bfloat16"])(model)
    save_graph(model, tmp_path / "graphs" / "vision_encoder.onnx")
    seal_again(tmp_path / "graphs")
    run_stage("compile", {}, tmp_path / "graphs", tmp_path / "kit", target=TARGET)
    written, manifest = kits.read_kit(tmp_path / "kit")
    assert written.emulated_by is None
    assert EngineEvaluators().emulated(tmp_path / "kit") is None
    for name, row in manifest.components.items():
        runs = kits.GoldenRuns(tmp_path / "kit", written.components[name], row)
        (truth,) = runs.in_float()
        outputs = runs[0][1].items()
        assert any((truth[output] != value).any() for output, value in outputs) == (name == "text_encoder")


def test_the_shell_script_gives_trtexec_each_graph_with_its_profile(kit: Path, tmp_path: Path) -> None:
    trtexec = tmp_path / "trtexec"
    trtexec.write_text('#!/bin/sh\nif [ "$1" = --help ]; then echo "  --stronglyTyped  x"; else echo "$@"; fi\n')
    trtexec.chmod(0o755)
    environment = {**os.environ, "TRTEXEC": str(trtexec)}
    done = subprocess.run([kit / "build.sh"], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    vision, text = (shlex.split(line) for line in done.stdout.splitlines())
    assert vision[:2] == ["--stronglyTyped", "--skipInference"]
    assert {"--onnx=vision_encoder.onnx", "--saveEngine=vision_encoder.plan"} <= set(vision)
    assert "--timingCacheFile=timing.cache" in vision
    assert "--minShapes=pixel_values:1x3x32x32" in vision
    assert "--maxShapes=pixel_values:16x3x32x32" in vision
    assert "--onnx=text_encoder.onnx" in text
    (kit / "text_encoder.onnx").write_bytes(b"other")
    assert subprocess.run([kit / "build.sh"], env=environment, capture_output=True, check=False).returncode != 0


def test_the_python_script_builds_with_nvidia_s_builder(kit: Path, tmp_path: Path) -> None:
    nvidia()
    (tmp_path / "tensorrt.py").write_text(
        "import sys\nfrom vlm_edge.backends.tensorrt_rtx.wheels import bindings\nsys.modules['tensorrt'] = bindings()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, kit / "build.py"], env=environment, check=True, capture_output=True)
    for name in ("vision_encoder", "text_encoder"):
        assert (kit / f"{name}.plan").stat().st_size > 10_000


def test_on_device_plans_are_built_up_to_the_driver(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia()
    content = json.loads((kit / kits.KIT_NAME).read_text()) | {"engine": "tensorrt-rtx"}
    (kit / kits.KIT_NAME).write_text(json.dumps(content))
    seal_again(kit)
    monkeypatch.setattr(cuda_memory, "driver_missing", lambda: "no NVIDIA driver is installed")
    (tmp_path / "out").mkdir()
    with pytest.raises(VlmEdgeError, match="engine tensorrt-rtx: no NVIDIA driver is installed"):
        build_engine(kit, tmp_path / "out", SilentProgress())
    assert not list((tmp_path / "out").iterdir())
    written, manifest = kits.read_kit(kit)
    for name, row in manifest.components.items():
        built = TensorRtxKit().build(kit / row.file, row, written.components[name].profile, tmp_path / "out")
        assert built == row.model_copy(update={"file": f"{name}.plan"})
        assert (tmp_path / "out" / built.file).stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")  # its timing cache stays empty
def test_the_timing_cache_is_written_and_read_and_another_s_is_replaced(kit: Path, tmp_path: Path) -> None:
    part, cache = kits.read_kit(kit)[0].components["vision_encoder"], tmp_path / "timing.cache"
    for _ in range(2):
        plan_of(nvidia(), kit / "vision_encoder.onnx", part.profile, timing_cache=cache)
        content = cache.read_bytes()
    assert content
    cache.write_bytes(b"another's")
    plan_of(nvidia(), kit / "vision_encoder.onnx", part.profile, timing_cache=cache)
    assert cache.read_bytes() == content


def test_the_timing_cache_s_names_are_in_both_major_versions() -> None:
    for names in published().values():
        assert {"create_timing_cache", "get_timing_cache", "set_timing_cache"} <= set(names["IBuilderConfig"])
