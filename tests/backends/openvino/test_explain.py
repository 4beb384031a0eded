"""What explain says of OpenVINO's own models."""

from __future__ import annotations

import planted_int8 as planted
import pytest

from vlm_edge.backends.openvino.compile import write_ir
from vlm_edge.backends.openvino.explain import CAUSES, Kernel
from vlm_edge.core.stage import SilentProgress
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.explain import Asked, explain
from vlm_edge.explain.compiled import kernel_facts

pytest.importorskip("openvino")


def look(path, runs):
    return explain(path, Asked(runs=runs), SilentProgress())["components"][path.stem]


@pytest.fixture
def quantized(tmp_path):
    """Layers whose data is u8 and whose weights are s8."""
    graph = planted.write(planted.with_pairs(planted.float_chain("gelu"), planted.MATMUL, signed=False), tmp_path / "q")
    write_ir(graph, tmp_path / "q.xml")
    return tmp_path / "q.xml"


def test_quantized_layers_run_in_integers(quantized):
    part = look(quantized, runs=2)
    assert part["integer"] == {"FullyConnected": 3}
    assert part["float"] == []
    assert part["p50_ms"] > 0
    assert sum(row["share"] for row in part["operators"]) == pytest.approx(1, abs=1e-3)
    assert "float-weights" not in [finding["cause"] for finding in part["findings"]]


def test_float_layers_are_named_without_a_run_too(tmp_path):
    write_ir(planted.write(planted.float_chain("gelu"), tmp_path / "f"), tmp_path / "f.xml")
    for runs in (0, 2):
        part = look(tmp_path / "f.xml", runs)
        assert part["integer"] == {}
        finding = next(each for each in part["findings"] if each["cause"] == "float-weights")
        assert finding["nodes"] == 3
        assert (finding["share"] is None) == (runs == 0)


def test_kernels_of_each_kind():
    kernels = [
        Kernel("a", "Convolution", "brgconv_avx512_I8", "i8", 3.0),
        Kernel("b", "FakeQuantize", "jit_avx512_f32", "f32", 1.0),
        Kernel("c", "Reorder", "jit_uni_f32", "f32", 0.5),
        Kernel("d", "MatMul", "brgemm_avx512_f32", "f32", 0.5),
    ]
    facts = kernel_facts(kernels, CAUSES, timed=True)
    assert {row["kind"]: row["share"] for row in facts["kinds"]} == {
        "integer": 0.6,
        "activation Q/DQ": 0.2,
        "layout": 0.1,
        "float product": 0.1,
    }
    assert [(each["cause"], each["share"]) for each in facts["findings"]] == [
        ("unfused-qdq", 0.2),
        ("layout-transposes", 0.1),
    ]
    assert facts["quantize_dequantize"] == {"FakeQuantize": 1}


def test_a_corrupt_model_is_named(tmp_path):
    (tmp_path / "bad.xml").write_text("<net>")
    with pytest.raises(VlmEdgeError, match=r"bad\.xml: OpenVINO can't"):
        look(tmp_path / "bad.xml", 1)
