"""A network that TensorRT takes, quantized as NVIDIA recommends, and how to plant a fault in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
net (float[1, 8, 8, 8] x) => (float[1, 8, 8, 8] y, float[1, 8, 8, 8] context) {
  x_q = QuantizeLinear (x, x_scale, zero)
  x_d = DequantizeLinear (x_q, x_scale, zero)
  kernel_d = DequantizeLinear <axis = 0> (kernel, kernel_scale, kernel_zero)
  conv = Conv <kernel_shape = [1, 1]> (x_d, kernel_d, conv_bias)
  relu = Relu (conv)
  relu_q = QuantizeLinear (relu, relu_scale, zero)
  relu_d = DequantizeLinear (relu_q, relu_scale, zero)
  matrix_d = DequantizeLinear <axis = 1> (matrix, matrix_scale)
  product = MatMul (relu_d, matrix_d)
  biased = Add (product, bias)
  sum = Add (biased, relu_d)
  sum_q = QuantizeLinear (sum, sum_scale, zero)
  sum_d = DequantizeLinear (sum_q, sum_scale, zero)
  keys = Transpose <perm = [0, 1, 3, 2]> (sum_d)
  scores = MatMul (sum_d, keys)
  scaled = Div (scores, width)
  weights = Softmax (scaled)
  weights_q = QuantizeLinear (weights, weights_scale, zero)
  weights_d = DequantizeLinear (weights_q, weights_scale, zero)
  context = MatMul (weights_d, sum_d)
  normed = LayerNormalization (context, gamma, beta)
  rows = Reshape (sum_d, row_shape)
  gemm_d = DequantizeLinear <axis = 0> (gemm, gemm_scale)
  mixed = Gemm <transB = 1> (rows, gemm_d, gemm_bias)
  y_rows = Reshape (mixed, y_shape)
  y = Add (y_rows, normed)
}"""


def network() -> onnx.ModelProto:
    """Convolution, residual addition, attention and Gemm, all quantized as TensorRT wants it; nodes named by output."""
    generator = np.random.default_rng(0)
    values: dict[str, NDArray[Any]] = {
        "zero": np.array(0, np.int8),
        "kernel": generator.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8),
        "kernel_scale": np.full(8, 0.01, np.float32),
        "kernel_zero": np.zeros(8, np.int8),
        "matrix": generator.integers(-127, 128, (8, 8)).astype(np.int8),
        "gemm": generator.integers(-127, 128, (8, 8)).astype(np.int8),
        "row_shape": np.array([64, 8]),
        "y_shape": np.array([1, 8, 8, 8]),
        "width": np.array(2.8, np.float32),
    }
    for name in ("matrix_scale", "gemm_scale", "conv_bias", "bias", "gemm_bias", "gamma", "beta"):
        values[name] = generator.uniform(0.01, 0.02, 8).astype(np.float32)
    for name in ("x_scale", "relu_scale", "sum_scale", "weights_scale"):
        values[name] = np.array(0.02, np.float32)
    model: onnx.ModelProto = parser.parse_model(GRAPH)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    return model


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def constant(model: onnx.ModelProto, name: str, value: Any) -> str:
    """Set an initializer, or add it; its name."""
    tensors = [tensor for tensor in model.graph.initializer if tensor.name != name]
    tensors.append(numpy_helper.from_array(np.asarray(value), name))
    fresh = onnx.GraphProto(initializer=tensors)
    del model.graph.initializer[:]
    model.graph.initializer.extend(fresh.initializer)
    return name


def reading(model: onnx.ModelProto, name: str, index: int, tensor: str) -> None:
    node_of(model, name).input[index] = tensor


def before(model: onnx.ModelProto, name: str, *nodes: onnx.NodeProto) -> None:
    """Insert nodes, named by their output, before another one."""
    position = [node.name for node in model.graph.node].index(name)
    for offset, node in enumerate(nodes):
        node.name = node.output[0]
        model.graph.node.insert(position + offset, node)


def pair(name: str, scale: str = "x_scale", zero: str = "zero") -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_pq"]),
        helper.make_node("DequantizeLinear", [f"{name}_pq", scale, zero], [f"{name}_pd"]),
    ]
