"""Compiling for TensorRT-RTX gives finished plans on a machine without a GPU, and says that nothing was measured."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner
from family_checkpoints import Exported
from rtx import nvidia
from sealed import seal_again

from vlm_edge.api import find_target, run_stage
from vlm_edge.backends import engine_available, load_engine
from vlm_edge.backends.lowering import lowering_of
from vlm_edge.backends.tensorrt import cuda_memory
from vlm_edge.backends.tensorrt.build import plan_of
from vlm_edge.backends.tensorrt.profiles import dimension_ranges, profile_shapes
from vlm_edge.backends.tensorrt_rtx import wheels
from vlm_edge.cli.main import main
from vlm_edge.core.stage import SilentProgress
from vlm_edge.errors import RecipeError, VlmEdgeError
from vlm_edge.evaluation.explain import Asked, explain
from vlm_edge.graphs.edit import name_of
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.passes.tensorrt_form import integer_nodes
from vlm_edge.processing.manifest import read_manifest, write_manifest
from vlm_edge.stages.compile_references import reference_runs
from vlm_edge.stages.quantize_attempt import quantize_graph

TARGET = "rtx-tensorrt"
UNCHECKED = "no NVIDIA driver is installed: plans are built here, and run on the device"


@pytest.fixture(scope="module")
def graphs(tiny_clip_graphs: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's graphs, the text encoder in INT8."""
    folder = tmp_path_factory.mktemp("int8") / "graphs"
    shutil.copytree(tiny_clip_graphs.folder, folder)
    path = folder / "text_encoder.onnx"
    runs = reference_runs(folder, tiny_clip_graphs.manifest, 1, 0, folder.parent)["text_encoder"]
    lowering = lowering_of("tensorrt-rtx", "cuda")
    save_graph(quantize_graph(load_graph(path), "int8", [feed for feed, _ in runs], lowering), path)
    write_manifest(folder, tiny_clip_graphs.manifest)
    return folder


def test_plans_are_finished_and_the_facts_say_what_runs_in_int8(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "driver_missing", lambda: "no NVIDIA driver is installed")
    facts = run_stage("compile", {}, graphs, tmp_path / "engine", target=TARGET)
    assert facts["unchecked"] == UNCHECKED
    parts = facts["components"]
    assert "int8_layers" not in parts["vision_encoder"]
    assert parts["text_encoder"]["int8_layers"] >= 8
    assert parts["text_encoder"]["left_in_float"] == []
    assert "max_relative_error" not in parts["text_encoder"]
    manifest = read_manifest(tmp_path / "engine")
    assert manifest.engine is not None
    assert (manifest.engine.name, manifest.engine.version) == ("tensorrt-rtx", nvidia().__version__)
    for name, row in manifest.components.items():
        assert row.file == f"{name}.plan"
        assert (tmp_path / "engine" / row.file).stat().st_size == parts[name]["size_bytes"]
    row = manifest.components["text_encoder"]
    with pytest.raises(VlmEdgeError, match=f"engine tensorrt-rtx: {UNCHECKED}"):
        load_engine("tensorrt-rtx", tmp_path / "engine" / row.file, row)


def test_explain_reads_fusion_and_precision_from_the_plan(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text encoder's layers are 6 for each of 2 blocks, of which queries, keys and values are one kernel, and 1."""
    monkeypatch.setattr(cuda_memory, "driver_missing", lambda: "no NVIDIA driver is installed")
    facts = run_stage("compile", {}, graphs, tmp_path / "engine", target=TARGET)["components"]
    found = explain(tmp_path / "engine", Asked(), SilentProgress())["components"]
    text, vision = found["text_encoder"], found["vision_encoder"]
    assert "p50_ms" not in text
    assert 8 <= text["integer"]["MatMul"] <= facts["text_encoder"]["int8_layers"]
    quantized = {name_of(node) for node in integer_nodes(load_graph(graphs / "text_encoder.onnx").graph)}
    in_float = {name for each in text["findings"] if each["cause"] == "float-weights" for name in each["names"]}
    assert in_float.isdisjoint(quantized)
    assert vision["integer"] == {}
    (weights,) = (each for each in vision["findings"] if each["cause"] == "float-weights")
    assert weights["nodes"] >= 8
    assert any("+" in row["operator"] or row["operator"].startswith("Kernel ") for row in text["operators"])
    (tmp_path / "engine" / "text_encoder.plan").write_bytes(b"no plan")
    seal_again(tmp_path / "engine")
    with pytest.raises(VlmEdgeError, match=r"text_encoder\.plan: no plan"):
        explain(tmp_path / "engine", Asked(), SilentProgress())


def test_a_plan_is_built_for_the_gpus_that_the_target_names(graphs: Path) -> None:
    manifest = read_manifest(graphs)
    shapes = profile_shapes(manifest.components["vision_encoder"], dimension_ranges(manifest, 1))
    given = (nvidia(), graphs / "vision_encoder.onnx", shapes, wheels.PRODUCT)
    plans = [bytes(plan_of(*given, capabilities=each)) for each in (["8.6"], ["8.9"], ["8.6", "8.9"])]
    assert len(set(plans)) == 3
    with pytest.raises(VlmEdgeError, match=r"compute_capabilities: TensorRT-RTX 1\.\S+ builds for no '9\.0'\n"):
        plan_of(*given, capabilities=["9.0"])


def test_a_target_names_gpus_that_its_engine_builds_for(tmp_path: Path) -> None:
    for engine, capability in (("tensorrt-rtx", "9.0"), ("tensorrt", "8.7")):
        (tmp_path / "box.yaml").write_text(f"name: box\nengine: {engine}\ncompute_capabilities: ['{capability}']\n")
        with pytest.raises(RecipeError, match=f"compute_capabilities: {engine} builds for no GPU of '{capability}'"):
            find_target(str(tmp_path / "box.yaml"))
    (tmp_path / "box.yaml").write_text("name: box\nengine: tensorrt-rtx\ncompute_capabilities: ['8.6', '8.9']\n")
    target = find_target(str(tmp_path / "box.yaml"))
    assert target.decides["compute_capabilities"] == ["8.6", "8.9"]
    assert set(find_target(TARGET).decides) == {"engine", "threads", "isa"}


def test_the_command_writes_the_plan_and_exits_as_what_was_not_measured(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "driver_missing", lambda: "no NVIDIA driver is installed")
    out = tmp_path / "engine"
    done = CliRunner().invoke(main, ["compile", str(graphs), "-o", str(out), "--target", TARGET])
    assert done.exit_code == 5, done.output
    assert f"unchecked: {UNCHECKED}" in done.stdout
    assert (out / "text_encoder.plan").is_file()


def test_without_the_wheels_nothing_is_written(graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    said = f"the package {wheels.LIBRARIES_WHEEL} is not installed; pip install 'vlm-edge\\[tensorrt-rtx\\]'"
    with pytest.raises(VlmEdgeError, match=f"engine tensorrt-rtx: TensorRT-RTX: {said}"):
        run_stage("compile", {}, graphs, tmp_path / "engine", target=TARGET)
    assert not (tmp_path / "engine").exists()
    reason = engine_available("tensorrt-rtx")
    assert reason is not None
    assert wheels.LIBRARIES_WHEEL in reason
