"""16-bit graphs from the export stage: what they are, how they are checked, and what later stages make of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from _outlier_channels import add_outliers
from family_checkpoints import Exported, least_cosine, photos
from photo_folders import write_photos
from rtx import plan

from vlm_edge.api import run_stage
from vlm_edge.backends import load_engine
from vlm_edge.backends.compiling import reference_engine
from vlm_edge.backends.tensorrt_rtx.plan import in_float
from vlm_edge.core.stage import StageWork
from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs.edit import name_of
from vlm_edge.graphs.files import load_graph, save_graph, weight_bytes
from vlm_edge.graphs.passes.half_precision import HALVES, HalfPrecision
from vlm_edge.graphs.passes.prepare import NameNodes
from vlm_edge.graphs.passes.tensorrt_form import integer_nodes
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import load_pipeline
from vlm_edge.stages import export_half
from vlm_edge.stages.export_half import HalfRuns, random_runs, write_half


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data"), "classification", images=12)


@pytest.fixture(scope="module")
def half(tiny_clip: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """CLIP's graphs in float16, and the stage's facts."""
    folder = tmp_path_factory.mktemp("half") / "graphs"
    facts = run_stage("export", {"dtype": "float16", "samples": 8}, tiny_clip, folder, data=data)
    return folder, facts


def types_of(path: Path) -> set[ir.DataType]:
    """Of the constants that are more than a few numbers."""
    values = [value for value in load_graph(path).graph.initializers.values() if value.const_value is not None]
    return {value.const_value.dtype for value in values if value.const_value and value.const_value.size > 64}


def test_float16_graphs_are_the_model_s_in_half_the_bytes(
    half: tuple[Path, dict[str, Any]], tiny_clip_graphs: Exported
) -> None:
    folder, facts = half
    manifest = read_manifest(folder)
    assert manifest.precision == dict.fromkeys(manifest.components, "float16")
    assert manifest.components == tiny_clip_graphs.manifest.components  # inputs and outputs are float32
    for name, component in manifest.components.items():
        assert types_of(folder / component.file) <= {ir.DataType.FLOAT16, ir.DataType.INT64}
        found = facts["half"]["components"][name]
        assert found["cosine"] > 0.99999
        assert 0 < len(found["float32"]) < found["nodes"]
        before, after = (load_graph(each / component.file) for each in (tiny_clip_graphs.folder, folder))
        assert weight_bytes(after) < 0.6 * weight_bytes(before)
    assert facts["half"]["composed"]["images"] == 6
    pipeline = load_pipeline(folder, threads=1)  # on onnxruntime
    assert least_cosine(pipeline.embed_images(photos()), tiny_clip_graphs.pipeline.embed_images(photos())) > 0.9999


def test_layers_are_quantized_inside_float16_graphs_for_tensorrt(
    half: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    settings = {"components": {"vision_encoder": "int8", "*": "none"}, "samples": 8, "sensitivity": "none"}
    out = tmp_path / "int8"
    facts = run_stage("quantize", settings, half[0], out, data=data, target="rtx-tensorrt")
    assert facts["components"]["vision_encoder"]["scheme"].startswith("int8")
    manifest = read_manifest(out)
    path = out / manifest.components["vision_encoder"].file
    assert {ir.DataType.INT8, ir.DataType.FLOAT16} == types_of(path) - {ir.DataType.INT64}
    scales = {node.inputs[1].dtype for node in load_graph(path).graph if node.op_type == "DequantizeLinear"}  # type: ignore[union-attr]
    assert ir.DataType.FLOAT16 in scales
    quantized = {name_of(node) for node in integer_nodes(load_graph(path).graph)}
    assert len(quantized) >= 12
    assert not quantized & in_float(plan(path, "vision_encoder", manifest))  # attention, too: one type for both scales
    text = manifest.components["text_encoder"].file
    assert (out / text).read_bytes() == (half[0] / text).read_bytes()


def test_for_a_cpu_float32_graphs_are_quantized(half: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmEdgeError, match="the graphs are float16; for onnxruntime float32 ones are quantized"):
        run_stage("quantize", {"samples": 8}, half[0], tmp_path / "int8", data=data, target="cpu-ort")
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize("target", ["cpu-ort", "cpu-openvino"])
def test_float16_graphs_compile_for_a_cpu(half: tuple[Path, dict[str, Any]], target: str, tmp_path: Path) -> None:
    facts = run_stage("compile", {"tune_seconds": 0}, half[0], tmp_path / "engine", target=target)
    assert all(each["cosine"] > 0.9999 for each in facts["components"].values())


def runs_of(subject: Exported, tmp_path: Path) -> tuple[dict[str, HalfRuns], StageWork]:
    work = StageWork(out=tmp_path / "out", scratch=tmp_path / "scratch")
    return random_runs(subject.folder, subject.manifest, work), work


def test_bfloat16_graphs_are_checked_without_kernels_for_them(tiny_clip_graphs: Exported, tmp_path: Path) -> None:
    runs, work = runs_of(tiny_clip_graphs, tmp_path)
    folder, manifest = write_half("bfloat16", tiny_clip_graphs.folder, tiny_clip_graphs.manifest, runs, work)
    for name, component in manifest.components.items():
        assert types_of(folder / component.file) <= {ir.DataType.BFLOAT16, ir.DataType.INT64, ir.DataType.FLOAT}
        assert 0.999 < work.facts["half"]["components"][name]["cosine"] < 0.99999999
        with pytest.raises(VlmEdgeError) as error:
            load_engine("onnxruntime", folder / component.file, component)
        assert error.value.hint.endswith("bfloat16 graphs are for TensorRT: export with another dtype")
        assert plan(folder / component.file, name, manifest)


def test_outlier_channels_break_a_plain_cast_and_not_the_stage(tiny_clip_graphs: Exported, tmp_path: Path) -> None:
    graphs = tmp_path / "graphs"
    shutil.copytree(tiny_clip_graphs.folder, graphs)
    row = tiny_clip_graphs.manifest.components["vision_encoder"]
    model = load_graph(tiny_clip_graphs.folder / row.file)
    assert add_outliers(model, factor=1e5) > 0
    save_graph(model, graphs / row.file)
    manifest, work = tiny_clip_graphs.manifest, StageWork(out=tmp_path / "out", scratch=tmp_path / "scratch")
    runs = random_runs(graphs, manifest, work)
    folder, _ = write_half("float16", graphs, manifest, runs, work)
    found = work.facts["half"]["components"]["vision_encoder"]
    assert found["cosine"] > 0.9999
    assert list(found["float32"].values()).count("range") >= 4
    NameNodes()(model)
    HalfPrecision(HALVES["float16"])(model)
    save_graph(model, tmp_path / "plain.onnx")
    feed, _ = next(iter(runs["vision_encoder"].checked))
    assert not np.isfinite(reference_engine(tmp_path / "plain.onnx", row).infer(feed)["image_embeds"]).all()
    assert np.isfinite(reference_engine(folder / row.file, row).infer(feed)["image_embeds"]).all()


def test_a_graph_that_strays_is_refused(
    tiny_clip_graphs: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_half, "MIN_COSINE", 1.1)
    runs, work = runs_of(tiny_clip_graphs, tmp_path)
    with pytest.raises(VlmEdgeError, match="export: vision_encoder: in float16 its output image_embeds") as error:
        write_half("float16", tiny_clip_graphs.folder, tiny_clip_graphs.manifest, runs, work)
    assert error.value.hint == "export with dtype: float32 or bfloat16"


@pytest.mark.parametrize("target", ["cpu-ort", "cpu-openvino"])
def test_float16_weights_are_half_the_file_and_float32_arithmetic(
    tiny_clip_graphs: Exported, data: Path, target: str, tmp_path: Path
) -> None:
    settings = {"components": {"*": "float16-weights"}, "samples": 8}
    facts = run_stage("quantize", settings, tiny_clip_graphs.folder, tmp_path / "half", data=data, target=target)
    for name, component in tiny_clip_graphs.manifest.components.items():
        assert facts["components"][name]["attempts"][0]["cosine"] > 0.99999
        model = onnx.load(tmp_path / "half" / component.file)
        types = {each.data_type for each in model.graph.initializer if np.prod(each.dims) >= 1024}
        assert types == {onnx.TensorProto.FLOAT16}
        readers = {node.op_type for node in model.graph.node if any(name.endswith("_float16") for name in node.input)}
        assert readers == {"Cast"}
    compiled = run_stage("compile", {"tune_seconds": 0}, tmp_path / "half", tmp_path / "engine", target=target)
    plain = run_stage("compile", {"tune_seconds": 0}, tiny_clip_graphs.folder, tmp_path / "plain", target=target)
    for name, each in compiled["components"].items():
        assert each["max_relative_error"] < 1e-3  # of the graph with these weights: nothing else is rounded
        assert each["size_bytes"] < 0.85 * plain["components"][name]["size_bytes"]
