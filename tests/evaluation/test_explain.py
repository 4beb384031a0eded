"""What explain says of files and folders, and where its numbers come from."""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import planted_int8 as planted
import pytest
from onnx import numpy_helper
from proto_passes import dynamic_linears
from tiny_graphs import write_dual_encoder, write_vqa

from vlm_edge.backends.explaining import USUAL_TOKENS, generated_feed
from vlm_edge.backends.onnxruntime.explain import WARM_UPS, LoadedGraph, equal_weights, median_node_ms
from vlm_edge.core.stage import SilentProgress
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.explain import Asked, explain, lacks, measure_speed, pipeline_feeds, read_feed
from vlm_edge.processing.manifest import EngineInfo, read_manifest, write_manifest

X86 = platform.machine().lower() in ("x86_64", "amd64")


def look(path, **asked):
    return explain(path, Asked(**asked), SilentProgress())


@pytest.fixture
def scratch_root(tmp_path, monkeypatch):
    """Where temporary folders are made, to see that none is left."""
    root = tmp_path / "temporary"
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    return root


@pytest.mark.skipif(not X86, reason="onnxruntime fuses s8 data on ARM")
def test_a_slow_graph_is_explained_with_times(tmp_path, scratch_root):
    path = planted.write(planted.gemm_blocked(), tmp_path / "slow.onnx")
    report = look(path, runs=4)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    part = report["components"]["slow"]
    assert part["inputs"] == {"x": [1, planted.ROWS, planted.WIDTH]}
    assert part["fed"] == "noise"
    first = part["findings"][0]
    assert first["cause"] == "gemm-fusion"
    assert first["operators"] == {"DequantizeLinear": 6, "Gemm": 3}
    assert all("fc" in name for name in first["names"][:3])
    assert 0 < first["share"] <= first["time_share"] <= 1
    assert sum(row["share"] for row in part["operators"]) == pytest.approx(1, abs=1e-3)
    assert sum(row["share"] for row in part["kinds"]) == pytest.approx(1, abs=1e-3)
    assert sum(row["ms"] for row in part["operators"]) == pytest.approx(part["kernels_ms"], abs=1e-3)
    assert part["float"] == [
        {"operator": "Gemm", "count": 3, "why": "gemm-fusion", "nodes": [f"fc{i}/MatMulAddFusion" for i in range(3)]}
    ]
    assert part["weights_dequantized"] == {"count": 3, "elements": 3 * planted.WIDTH**2}
    assert list(scratch_root.iterdir()) == []
    assert [file.name for file in tmp_path.glob("*.onnx*")] == ["slow.onnx"]


def test_the_remedied_graph_has_nothing_to_mend(tmp_path):
    path = planted.write(planted.around_products("gelu"), tmp_path / "fast.onnx")
    part = look(path, runs=2)["components"]["fast"]
    assert part["findings"] == []
    assert part["integer"] == {"MatMulIntegerToFloat": 3}
    assert part["quantize_dequantize"] == {"QuantizeLinear": 3}


def test_without_time_nothing_is_run(tmp_path):
    path = planted.write(planted.around_float("norm"), tmp_path / "slow.onnx")
    report = look(path, runs=0)
    part = report["components"]["slow"]
    assert "products" not in report["host"]
    assert "p50_ms" not in part
    assert all("ms" not in row for row in part["operators"])
    assert [(each["cause"], each["share"]) for each in part["findings"]] == [("qdq-around-float-op", None)]


def test_the_session_s_graph_is_onnxruntime_s_own(tmp_path):
    path = planted.write(planted.around_float("gelu"), tmp_path / "g.onnx")
    loaded = LoadedGraph(path, threads=1, options={}, scratch=tmp_path)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "reference.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    reference = onnx.load(tmp_path / "reference.onnx")
    assert [node.op_type for node in loaded.model.graph.node] == [node.op_type for node in reference.graph.node]
    as_it_is = LoadedGraph(path, threads=1, options={"graph_optimization": "disabled"}, scratch=tmp_path)
    assert "Gelu" in {node.op_type for node in as_it_is.model.graph.node}
    assert not any(node.op_type.startswith("QLinear") for node in as_it_is.model.graph.node)


def test_every_node_of_the_session_s_graph_is_timed(tmp_path):
    path = planted.write(planted.around_float("silu"), tmp_path / "g.onnx")
    loaded = LoadedGraph(path, threads=1, options={}, scratch=tmp_path)
    timing = loaded.time(generated_feed(loaded.inputs(), {}), runs=2)
    assert sorted(timing.node_ms) == list(range(len(loaded.model.graph.node)))
    assert sum(timing.shares().values()) == pytest.approx(1)
    assert timing.p50_ms > 0


def test_medians_leave_warm_ups_out_and_know_only_numbered_nodes():
    def event(name, duration, category="Node"):
        return {"cat": category, "name": name, "dur": duration}

    warm = [event("#0_kernel_time", 9000)] * WARM_UPS
    runs = [event("#0_kernel_time", duration) for duration in (1000, 5000, 2000)]
    others = [event("inner_kernel_time", 7), event("#0_fence_before", 7), event("model_run", 7, "Session")]
    assert median_node_ms([*warm, *runs, *others]) == {0: 2.0}


def test_a_graph_whose_weights_lie_beside_it(tmp_path):
    model = planted.around_products("gelu")
    onnx.save_model(model, tmp_path / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    part = look(tmp_path / "g.onnx", runs=1)["components"]["g"]
    assert part["integer"] == {"MatMulIntegerToFloat": 3}


def test_equal_weights_are_found_by_their_bytes(tmp_path):
    big = np.ones((200, 200), np.float32)
    other = big.copy()
    other[0, 0] = 2
    weights = {"a": big, "b": other, "c": big, "d": big.reshape(-1), "e": big.astype(np.int32)}
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    assert equal_weights(model, tmp_path) == ((("a", "c"), big.nbytes),)


def test_a_folder_is_explained_by_component(tmp_path):
    write_vqa(tmp_path)
    report = look(tmp_path, runs=1)
    assert list(report["components"]) == ["vision_encoder", "text_encoder", "decoder"]
    assert {part["fed"] for part in report["components"].values()} == {"a query with a noise image"}
    past = report["components"]["decoder"]["inputs"]["past_key_values.0.key"]
    assert past[2] > 0
    alone = look(tmp_path, runs=0, components=("decoder",))
    assert list(alone["components"]) == ["decoder"]


@pytest.mark.parametrize(("scheme", "found"), [("int8", set()), ("int8-dynamic", {"dynamic-quantization"})])
def test_a_layer_s_form_is_no_fault_where_it_was_chosen(tmp_path, scheme, found):
    """The scheme int8 is calibrated: a layer that quantizes by run was measured to be faster so."""
    write_dual_encoder(tmp_path)
    manifest = read_manifest(tmp_path)
    planted.write(dynamic_linears(planted.float_chain(), weight_bits=8), tmp_path / "vision_encoder.onnx")
    write_manifest(tmp_path, manifest.model_copy(update={"precision": {"vision_encoder": scheme}}))
    part = look(tmp_path, runs=0, components=("vision_encoder",))["components"]["vision_encoder"]
    assert part["integer"] == {"DynamicQuantizeMatMul": 3}
    assert {finding["cause"] for finding in part["findings"]} == found


def test_a_decoder_is_fed_a_step_with_a_past(tmp_path):
    write_vqa(tmp_path)
    feeds = pipeline_feeds(tmp_path, read_manifest(tmp_path), None, 1)
    assert feeds["decoder"]["input_ids"].shape == (1, 1)
    assert feeds["decoder"]["past_key_values.0.key"].shape[2] > 0
    assert feeds["vision_encoder"]["pixel_values"].shape[0] == 1


def test_true_inputs_come_from_the_task(bench, dual_bench):
    report = look(bench.engine, runs=1, task=bench.task)
    assert {part["fed"] for part in report["components"].values()} == {"a sample of the data"}
    assert set(look(dual_bench.engine, runs=1, task=dual_bench.task)["components"]) == {
        "vision_encoder",
        "text_encoder",
    }


def test_the_engine_s_options_and_threads_are_used(tmp_path):
    write_dual_encoder(tmp_path)
    manifest = read_manifest(tmp_path)
    info = EngineInfo(name="onnxruntime", version="1", threads=1, options={"graph_optimization": "disabled"})
    write_manifest(tmp_path, manifest.model_copy(update={"engine": info}))
    part = look(tmp_path, runs=0, threads=4)["components"]["vision_encoder"]
    assert part["threads"] == 1
    assert {row["operator"] for row in part["operators"]} == {"ReduceMean", "LpNormalization"}


def test_free_dimensions():
    inputs = {
        "ids": (np.int64, ("batch", "tokens")),
        "mask": (np.bool_, (None, "tokens")),
        "pixels": (np.float32, ("images", 3, 4, 4)),
    }
    feed = generated_feed(inputs, {"tokens": 5})
    assert {name: value.shape for name, value in feed.items()} == {
        "ids": (1, 5),
        "mask": (1, 5),
        "pixels": (1, 3, 4, 4),
    }
    assert feed["ids"].dtype == np.int64
    assert feed["mask"].all()
    assert generated_feed(inputs, {})["ids"].shape == (1, USUAL_TOKENS)
    with pytest.raises(VlmEdgeError, match="--dim token: no input"):
        generated_feed(inputs, {"token": 5})


def test_a_noise_feed_of_a_decoder_adds_up():
    inputs = {
        "ids": (np.dtype(np.int64), ("batch", "new")),
        "mask": (np.dtype(np.int64), ("batch", "past + new")),
        "cache": (np.dtype(np.float32), ("batch", 2, "past", 4)),
    }
    shapes = {name: value.shape for name, value in generated_feed(inputs, {"new": 1, "past": 5}).items()}
    assert shapes == {"ids": (1, 1), "mask": (1, 6), "cache": (1, 2, 5, 4)}
    assert generated_feed(inputs, {})["mask"].shape == (1, 2 * USUAL_TOKENS)


def test_given_inputs_are_used(tmp_path):
    path = planted.write(planted.float_chain(), tmp_path / "g.onnx")
    np.savez(tmp_path / "in.npz", x=np.zeros((2, planted.ROWS, planted.WIDTH), np.float32))
    part = look(path, runs=1, inputs=tmp_path / "in.npz")["components"]["g"]
    assert (part["fed"], part["inputs"]["x"][0]) == ("in.npz", 2)
    np.savez(tmp_path / "bad.npz", x=np.zeros((2, 3), np.float32))
    with pytest.raises(VlmEdgeError, match="onnxruntime"):
        look(path, runs=1, inputs=tmp_path / "bad.npz")
    (tmp_path / "no.npz").write_bytes(b"no arrays")
    with pytest.raises(VlmEdgeError, match=r"no\.npz: no \.npz file"):
        read_feed(tmp_path / "no.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(VlmEdgeError, match="no arrays of numbers"):
        read_feed(tmp_path / "objects.npz")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"components": ("encoder",)}, "no component 'encoder'"),
        ({"dims": {"batch": 2}}, "--dim are for a single graph"),
        ({"inputs": Path("x.npz")}, "--inputs and --dim"),
    ],
)
def test_what_a_folder_does_not_take(tmp_path, asked, message):
    write_vqa(tmp_path)
    with pytest.raises(VlmEdgeError, match=message):
        look(tmp_path, **asked)


def test_what_can_t_be_explained(tmp_path, bench):
    (tmp_path / "bad.onnx").write_bytes(b"\xff no graph")
    with pytest.raises(VlmEdgeError, match=r"bad\.onnx: not an ONNX file"):
        look(tmp_path / "bad.onnx")
    with pytest.raises(VlmEdgeError, match="no such file or folder"):
        look(tmp_path / "nothing.onnx")
    with pytest.raises(VlmEdgeError, match="NOT MEASURED"):
        look(tmp_path / "vision.plan")
    planted.write(planted.float_chain(), tmp_path / "g.onnx")
    with pytest.raises(VlmEdgeError, match="are for a folder"):
        look(tmp_path / "g.onnx", task=bench.task)


def test_what_a_cpu_lacks():
    def names(machine, *isa):
        return list(lacks(machine, frozenset(isa)))

    assert names("x86", "avx2") == ["AVX512", "VNNI", "AMX"]
    assert names("x86", "avx2", "avx_vnni", "avx512f", "amx_int8") == []
    assert names("arm", "asimd", "asimddp") == ["i8mm"]
    assert names("arm", "asimd") == ["dot product", "i8mm"]
    assert names("other") == []


def test_integer_products_are_measured():
    speed = measure_speed()
    assert speed.measured
    assert min(speed.float_over_u8s8, speed.u8u8_over_u8s8, speed.s8s8_over_u8s8) >= 1
