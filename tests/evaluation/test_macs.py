"""Multiply-accumulates: of exported graphs against torch's own count, of fused and integer forms against plain ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.footprint import footprint, query_macs
from vlm_edge.evaluation.queries import draw_samples
from vlm_edge.graphs.ops import UncountedOperator
from vlm_edge.graphs.shapes import multiply_adds

BATCH, TOKENS, HIDDEN, HEADS = 2, 5, 12, 3


class Small(nn.Module):
    """Convolutions (plain, grouped, transposed), linear layers, a product of two activations and attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.linear = nn.Linear(4, HIDDEN)
        self.query, self.key = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, pixels):
        grid = self.up(self.depthwise(self.conv(pixels)))
        tokens = self.linear(grid.flatten(2).transpose(1, 2))
        split = (len(pixels), -1, HEADS, HIDDEN // HEADS)
        query, key = self.query(tokens).view(split).transpose(1, 2), self.key(tokens).view(split).transpose(1, 2)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, key)
        return torch.einsum("bhtd,bhsd->bhts", mixed, key)


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning", "ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("opset", [20, 23])  # attention spelled out, and as one node
def test_an_exported_model_counts_as_in_torch(tmp_path, opset):
    torch.manual_seed(0)
    model, pixels = Small().eval(), torch.randn(BATCH, 3, 8, 8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels)  # torch doesn't count the CPU's fused attention
    torch.onnx.export(
        model, (pixels,), tmp_path / "small.onnx", input_names=["pixels"], dynamo=True, opset_version=opset
    )
    assert multiply_adds(tmp_path / "small.onnx", [{"pixels": pixels.numpy()}]) == counter.get_total_flops() // 2


def test_every_run_counts_at_its_own_shape(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[n, 4] x) => (float[n, n] y) { z = Transpose (x)  w = MatMul (x, z)  y = Relu (w) }"""
    onnx.save(parser.parse_model(text), tmp_path / "g.onnx")
    feeds = [{"x": np.ones((n, 4), np.float32)} for n in (2, 5)]
    assert multiply_adds(tmp_path / "g.onnx", feeds) == (2 * 2 + 5 * 5) * 4
    assert multiply_adds(tmp_path / "g.onnx", []) == 0


def save(path, nodes, inputs, weights, outputs):
    """A model with com.microsoft nodes; ``inputs`` are float shapes, ``weights`` arrays."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def microsoft(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, domain="com.microsoft", **attributes)


def integer_weights(rows, columns):
    return {
        "w": np.ones((rows, columns), np.int8),
        "w_scale": np.ones((), np.float32),
        "w_zero": np.zeros((), np.int8),
        "scale": np.ones((), np.float32),
        "zero": np.zeros((), np.uint8),
    }


FORMS = {
    "DynamicQuantizeMatMul": [microsoft("DynamicQuantizeMatMul", ["x", "w", "w_scale", "w_zero"], ["y"])],
    "MatMulIntegerToFloat": [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        microsoft("MatMulIntegerToFloat", ["q", "w", "scale", "w_scale", "zero", "w_zero"], ["y"]),
    ],
    "MatMulInteger": [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero", "w_zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_integer_products_count_as_float_ones(tmp_path, form):
    path = save(tmp_path / "q.onnx", FORMS[form], {"x": (BATCH, TOKENS, 8)}, integer_weights(8, 6), ["y"])
    feed = {"x": np.ones((BATCH, TOKENS, 8), np.float32)}
    assert multiply_adds(path, [feed]) == BATCH * TOKENS * 8 * 6


def test_blockwise_weights_count_by_their_own_width(tmp_path):
    k, n, block = 32, 6, 16
    weights = {"w": np.ones((n, k // block, block // 2), np.uint8), "s": np.ones(n * k // block, np.float32)}
    nodes = [microsoft("MatMulNBits", ["x", "w", "s"], ["y"], K=k, N=n, bits=4, block_size=block)]
    path = save(tmp_path / "n.onnx", nodes, {"x": (BATCH, k)}, weights, ["y"])
    assert multiply_adds(path, [{"x": np.ones((BATCH, k), np.float32)}]) == BATCH * k * n


@pytest.mark.parametrize("past", [0, 4])
def test_fused_attention_counts_its_two_products(tmp_path, past):
    dim = HIDDEN // HEADS
    inputs = dict.fromkeys(("q", "k", "v"), (BATCH, TOKENS, HIDDEN))
    names = ["q", "k", "v"]
    if past:
        inputs |= dict.fromkeys(("pk", "pv"), (BATCH, HEADS, past, dim))
        names += ["", "", "", "pk", "pv"]
    outputs = ["y", "present_k", "present_v"] if past else ["y"]
    nodes = [microsoft("MultiHeadAttention", names, outputs, num_heads=HEADS)]
    path = save(tmp_path / "a.onnx", nodes, inputs, {}, outputs)
    feed = {name: np.ones(shape, np.float32) for name, shape in inputs.items()}
    plain = BATCH * HEADS * TOKENS * (TOKENS + past) * dim  # of one of softmax(q k^T) v's products
    assert multiply_adds(path, [feed]) == 2 * plain


def test_fused_attention_with_its_projection(tmp_path):
    weights = {"w": np.ones((HIDDEN, 3 * HIDDEN), np.float32), "b": np.zeros(3 * HIDDEN, np.float32)}
    nodes = [microsoft("Attention", ["x", "w", "b"], ["y"], num_heads=HEADS)]
    path = save(tmp_path / "a.onnx", nodes, {"x": (BATCH, TOKENS, HIDDEN)}, weights, ["y"])
    found = multiply_adds(path, [{"x": np.ones((BATCH, TOKENS, HIDDEN), np.float32)}])
    assert found == BATCH * TOKENS * HIDDEN * 3 * HIDDEN + 2 * BATCH * TOKENS * TOKENS * HIDDEN


def test_products_that_cannot_be_told_are_not_guessed(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (bool c, float[2, 2] x) => (float[2, 2] y) {
      y = If (c) <then_branch = t () => (float[2, 2] a) { a = MatMul (x, x) },
                  else_branch = e () => (float[2, 2] b) { b = Identity (x) }>
    }"""
    onnx.save(parser.parse_model(text), tmp_path / "if.onnx")
    with pytest.raises(UncountedOperator, match="in the body"):
        multiply_adds(tmp_path / "if.onnx", [{"c": np.array(True), "x": np.ones((2, 2), np.float32)}])


def test_a_query_counts_all_runs_of_all_components(bench):
    samples = draw_samples(bench.task, 8, seed=0)
    query = sorted(text for _, text in samples["items"])
    words = len(sorted(query, key=len)[4].split()) + 2
    found = query_macs(bench.engine, samples)
    assert found is not None
    keys_and_values = 2 * words * 3 * 6
    head = 6 * 12
    runs, rest = divmod(found - keys_and_values, head)
    assert rest == 0
    assert 1 <= runs <= 6
    counted = {each.metric: each.value for each in footprint(bench.engine, bench.engine, bench.task)}
    assert counted["macs"] > 0
    assert "macs" not in {each.metric for each in footprint(bench.engine, bench.engine)}


def test_labels_that_are_embedded_once_are_no_query_s(dual_bench):
    assert query_macs(dual_bench.engine, draw_samples(dual_bench.task, 4, seed=0)) == 0


def test_graphs_of_another_format_have_no_count(bench, monkeypatch):
    samples = draw_samples(bench.task, 4, seed=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert query_macs(bench.engine, samples) is None


def test_a_corrupt_graph_is_named(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\xff no graph")
    with pytest.raises(VlmEdgeError, match=r"bad\.onnx: not an ONNX file"):
        multiply_adds(tmp_path / "bad.onnx", [{}])
