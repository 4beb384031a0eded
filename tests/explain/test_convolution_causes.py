"""What explain says of integer convolutions in the form that `vlm-edge quantize` writes: nothing that isn't so."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import planted_int8 as planted
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from planted_int8 import view_of
from proto_passes import copied, integer_layers, quantize_graph, with_forms
from small_mobilevit import INTEGER_CONVOLUTIONS, pictures, small_mobilevit

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.explain.causes import Finding, explain_graph
from vlm_edge.explain.kernels import decompressed
from vlm_edge.explain.view import Int8View
from vlm_edge.graphs.ops import MICROSOFT

FOR_QDQ = ("gemm-fusion", "qdq-around-float-op", "partly-quantized", "unfused-qdq", "weight-dequantized")


@cache
def integer() -> onnx.ModelProto:
    return quantize_graph(small_mobilevit(), "int8", pictures(16), lowering_of("onnxruntime", "x86-vnni"))


def findings(view: Int8View) -> dict[str, Finding]:
    return {each.cause.name: each for each in explain_graph(view, None)}


def model_of(body: str, **constants: NDArray[Any]) -> onnx.ModelProto:
    """u8 steps of 0.05 around 128 (``s``, ``z``), s8 weight steps of 0.01 (``ws``)."""
    model: onnx.ModelProto = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20, "{MICROSOFT}" : 1]>
        net (float[n, 64, 8, 8] x) => (float[n, c, h, v] y) {{ {body} }}"""
    )
    values: dict[str, Any] = {"s": np.float32(0.05), "z": np.uint8(128), "ws": np.float32(0.01)} | constants
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    return model


def levels(*shape: int) -> NDArray[np.int8]:
    return np.random.default_rng(0).integers(-90, 90, shape).astype(np.int8)


QUANTIZED = """
  xq = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (xq, s, z)
  wd = DequantizeLinear (w, ws)
  c = Conv (xd, wd)
  cq = QuantizeLinear (c, s, z)
  cd = DequantizeLinear (cq, s, z)"""


class TestMobileVit:
    def test_no_pair_of_a_convolution_is_called_needless(self, tmp_path: Path) -> None:
        view = view_of(integer(), tmp_path)
        kernels = [node for node in view.graph.nodes if node.op_type == "QLinearConv"]
        assert len(kernels) == len(INTEGER_CONVOLUTIONS)
        found = findings(view)
        assert not set(FOR_QDQ) & set(found)
        claimed = {id(node) for finding in found.values() for node in finding.nodes}
        floats = [
            node for node in view.graph.nodes if node.op_type in ("QuickGelu", "LayerNormalization", "Concat", "Add")
        ]
        restored = [view.data_dequantizer(name) for node in floats for name in node.input if name]
        assert sum(node is not None for node in restored) >= 5
        assert not claimed & {id(node) for node in restored if node is not None}

    def test_levels_that_are_called_unchanged_are(self, tmp_path: Path) -> None:
        """What is claimed are pairs that onnxruntime put in: between them elements only move."""
        view = view_of(integer(), tmp_path)
        finding = findings(view)["requantized-unchanged"]
        quantizers = [node for node in finding.nodes if node.op_type == "QuantizeLinear"]
        assert quantizers
        known = {node.name for node in integer().graph.node}
        assert not known & {node.name for node in quantizers}
        model = copied(view.graph.model)
        sources = []
        for node in quantizers:
            restored = view.data_dequantizer(node.input[0])
            assert restored is not None
            sources.append(restored.input[0])
        names = [*sources, *(node.output[0] for node in quantizers)]
        kept = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in kept)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(names, pictures(1, seed=5)[0])
        for before, after in zip(values[: len(sources)], values[len(sources) :], strict=True):
            np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(after, axis=None))

    def test_forms_that_were_chosen_are_no_fault(self, tmp_path: Path) -> None:
        """Of a compiled engine: layers by run and in float, because they were measured to be faster so."""
        layers = integer_layers(integer())
        linear = [layer for layer in layers if layer.op_type != "QLinearConv"]
        forms: dict[str, Any] = {layer.node: layer.forms[0] for layer in layers}
        forms |= {linear[0].node: "dynamic", linear[1].node: "float", "fuse": "float"}
        view = view_of(with_forms(integer(), forms), tmp_path)
        assert {"dynamic-quantization", "float-weights"} <= set(findings(view))
        chosen = replace(view, chosen=True)
        assert not {"dynamic-quantization", "float-weights", *FOR_QDQ} & set(findings(chosen))
        (fuse,) = (node for node in view.graph.nodes if node.op_type == "Conv" and "c6" in node.name)
        assert decompressed(view, fuse) == "weight stored in int8, computed in float"


class TestFloatOperatorsBehindAConvolution:
    @pytest.mark.parametrize(
        ("body", "operator"),
        [
            ("y = Conv (cd, u)", "Conv"),  # a float layer: too few products for integers
            ("y = Softmax (cd)", "Softmax"),
            ("p = Add (cd, x)\n y = Softmax (p)", "Add"),
        ],
    )
    def test_they_read_what_has_no_float_form(self, body: str, operator: str, tmp_path: Path) -> None:
        constants = {"u": np.ones((8, 48, 1, 1), np.float32)} if operator == "Conv" else {}
        channels = 48 if operator == "Conv" else 64
        view = view_of(model_of(f"{QUANTIZED}\n{body}", w=levels(channels, 64, 1, 1), **constants), tmp_path)
        assert sum(node.op_type == "QLinearConv" for node in view.graph.nodes) == 1
        assert any(node.op_type == operator for node in view.graph.nodes)
        assert not set(FOR_QDQ) & set(findings(view))

    def test_a_second_convolution_without_a_pair_behind_it_is_partly_quantized(self, tmp_path: Path) -> None:
        body = f"{QUANTIZED}\n ud = DequantizeLinear (u, ws)\n y = Conv (cd, ud)"
        view = view_of(model_of(body, w=levels(64, 64, 1, 1), u=levels(64, 64, 3, 3)), tmp_path)
        finding = findings(view)["partly-quantized"]
        assert [node.op_type for node in finding.nodes if "Conv" in node.op_type] == ["Conv"]
        assert "Conv: its output is not quantized" in finding.reasons

    def test_pairs_around_what_a_linear_layer_wrote_are_still_needless(self, tmp_path: Path) -> None:
        view = view_of(planted.around_float("gelu"), tmp_path)
        assert "qdq-around-float-op" in findings(view)


@pytest.mark.parametrize(("alpha", "name"), [(1.0, "SiLU (QuickGelu)"), (1.702, "QuickGelu")])
def test_quick_gelu_with_alpha_1_is_silu(alpha: float, name: str, tmp_path: Path) -> None:
    view = view_of(
        model_of(
            f"""xq = QuantizeLinear (x, s, z)
            xd = DequantizeLinear (xq, s, z)
            y = {MICROSOFT}.QuickGelu <alpha = {alpha}> (xd)"""
        ),
        tmp_path,
    )
    assert f"Q/DQ around {name}, which runs in float" in findings(view)["qdq-around-float-op"].reasons
