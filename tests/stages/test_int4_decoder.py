"""Language components in 4 bits beside an INT8 vision tower: what is written, compiled and answered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from color_task import write_color_task
from proto_passes import graph_of, quantize_graph

from vlm_edge.api import run_stage
from vlm_edge.backends import engine_available, load_engine
from vlm_edge.backends.base import Feed
from vlm_edge.backends.lowering import lowering_of
from vlm_edge.graphs.match import find_linears
from vlm_edge.graphs.passes.lower_linears import blocks_of
from vlm_edge.processing.manifest import Component, read_manifest
from vlm_edge.quantizers.affine import agreement
from vlm_edge.runtime import VqaPipeline, load_pipeline
from vlm_edge.stages.quantize_attempt import prepare

COMPONENTS = {"vision_encoder": "int8", "*": "int4-weights"}


def run_stages(graphs: Path, folder: Path, engine: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of quantize and of compile, whose artifacts are in ``folder / "quantize"`` and ``folder / "compile"``."""
    (folder / "box.yaml").write_text(f"name: box\nengine: {engine}\nthreads: 1\nisa: x86-vnni\n", encoding="utf-8")
    task, target = write_color_task(folder / "task"), str(folder / "box.yaml")
    settings = {"components": COMPONENTS, "samples": 8, "sensitivity": "none"}
    facts = run_stage("quantize", settings, graphs, folder / "quantize", data=task.data, target=target)
    compiled = run_stage("compile", {"tune_seconds": 0.5}, folder / "quantize", folder / "compile", target=target)
    return facts["components"], compiled["components"]


def answers(folder: Path, images: Path) -> list[str]:
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, VqaPipeline)
    return [pipeline.answer(image, "what color is it") for image in sorted(images.glob("*.png"))]


def with_restored_weights(floating: onnx.ModelProto, int4: onnx.ModelProto) -> onnx.ModelProto:
    """The float graph with each weight of the 4-bit graph in the place of its own."""
    model = prepare(graph_of(floating))
    linears = {linear.output.name: linear for linear in find_linears(model.graph)}
    for node in graph_of(int4).graph:
        if node.op_type == "MatMulNBits":
            linear, blocks = linears[node.outputs[0].name], blocks_of(node)
            assert blocks is not None
            value = blocks.restored().T if linear.transposed else blocks.restored()
            linear.weight.const_value = ir.tensor(np.ascontiguousarray(value), name=linear.weight.name)
    return ir.to_proto(model)


def feed_of(component: Component, new: int, past: int) -> Feed:
    """Random values for a step of ``new`` tokens after ``past``."""
    generator = np.random.default_rng(past)
    feed: dict[str, Any] = {}
    for name, spec in component.inputs.items():
        sizes = {"new": new, "past": past, "past + new": past + new}
        shape = [sizes.get(size, 1 if size == "batch" else 5) if isinstance(size, str) else size for size in spec.shape]
        small = generator.normal(size=shape).astype(np.float32)
        feed[name] = small if spec.dtype == "float32" else np.ones(shape, np.int64)
    feed["input_ids"] = generator.integers(1, 20, feed["input_ids"].shape)
    return feed


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_decoder_in_4_bits_answers_beside_an_int8_tower(engine: str, tiny_blip_graphs: Any, tmp_path: Path) -> None:
    if (reason := engine_available(engine)) is not None:
        pytest.skip(reason)
    source = tiny_blip_graphs.folder
    facts, compiled = run_stages(source, tmp_path, engine)
    precision = read_manifest(tmp_path / "compile").precision
    assert (precision["vision_encoder"], precision["decoder"]) == ("int8", "int4-weights")
    decoder = facts["decoder"]
    assert decoder["operators"]["integer"] == {"MatMulNBits": 18}
    assert all(18 < layer["weight_sqnr_db"] < 30 for layer in decoder["layers"] if layer["operator"] == "MatMulNBits")
    assert sum(decoder["operators"]["constant_bytes"].values()) < decoder["float_size_bytes"] / 3
    assert compiled["decoder"]["integer"]
    assert compiled["decoder"]["cosine"] > 0.999
    text = [attempt["scheme"] for attempt in facts["text_encoder"]["attempts"]]
    assert text == ["int4-weights", "int8-weights"]  # random weights are too noisy for its 4 bits
    assert precision["text_encoder"] == "int8-weights"
    images = tmp_path / "task" / "data" / "train"
    found = answers(tmp_path / "compile", images)
    same = [one == other for one, other in zip(found, answers(tmp_path / "quantize", images), strict=True)]
    assert sum(same) >= len(same) - 2


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("new", "past"), [(4, 0), (1, 3)])
def test_the_decoder_computes_what_its_weights_stand_for(
    new: int, past: int, engine: str, tiny_blip_graphs: Any, tmp_path: Path
) -> None:
    if (reason := engine_available(engine)) is not None:
        pytest.skip(reason)
    component = read_manifest(tiny_blip_graphs.folder).components["decoder"]
    floating = onnx.load(tiny_blip_graphs.folder / component.file)
    int4 = quantize_graph(floating, "int4-weights", [], lowering_of(engine, "x86-vnni"))
    assert Counter(node.op_type for node in int4.graph.node)["MatMulNBits"] == 18
    onnx.save(int4, tmp_path / "int4.onnx")
    onnx.save(with_restored_weights(floating, int4), tmp_path / "restored.onnx")
    feed = feed_of(component, new, past)
    wanted = load_engine("onnxruntime", tmp_path / "restored.onnx", component, 1).infer(feed)
    found = load_engine(engine, tmp_path / "int4.onnx", component, 1).infer(feed)
    assert min(each.cosine for each in agreement([(wanted, found)]).values()) > 0.999
