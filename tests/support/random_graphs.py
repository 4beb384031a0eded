"""Random small quantized graphs, and running them on onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vlm_edge.quantizers.affine import quantize_weight

WIDTH = 4
LAYERS = ("matmul", "gemm", "conv", "add", "concat", "reshape", "product")
PAIRED = ("add", "concat", "product")
"""Layers of two computed tensors."""


@dataclass
class Builder:
    """A random graph over tensors (1, 4, 4, 4), each of them behind a quantizer of its own or of one it shares."""

    random: np.random.Generator
    dtype: type[np.int8] | type[np.uint8]
    weight_bits: int = 8
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    tensors: list[str] = field(default_factory=lambda: ["x"])
    quantized: dict[str, str] = field(default_factory=dict)

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"n_{output}", **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def parameters(self) -> tuple[str, str]:
        limits = np.iinfo(self.dtype)
        scale = np.float32(self.random.choice([0.004, 0.03, 0.21, 2.0**-7]))
        ends = [limits.min, limits.max, (limits.min + limits.max + 1) // 2]
        zero = self.random.choice([*ends, int(self.random.integers(limits.min, limits.max + 1))])
        return self.constant(np.asarray(scale)), self.constant(np.asarray(zero, self.dtype))

    def dequantized(self, name: str) -> str:
        """One of the graph's tensors behind a pair; a tensor that is read again shares the pair."""
        if name not in self.quantized:
            scale, zero = self.parameters()
            levels = self.node("QuantizeLinear", name, scale, zero)
            self.quantized[name] = self.node("DequantizeLinear", levels, scale, zero)
        return self.quantized[name]

    def weight(self, *shape: int, axis: int) -> str:
        """A weight by channel or by tensor, signed or unsigned, with or without a zero point."""
        values = self.random.normal(size=shape).astype(np.float32)
        levels, scales = quantize_weight(values, axis, bits=self.weight_bits)
        kind = self.random.integers(4) if self.weight_bits == 8 else 0
        attributes = {"axis": axis}
        zero = np.zeros(scales.shape, np.int8)
        if kind == 1:
            zero = self.random.integers(-9, 9, scales.shape).astype(np.int8)
        elif kind == 2:
            levels, zero = (levels.astype(np.int16) + 128).astype(np.uint8), np.full(scales.shape, 128, np.uint8)
        elif kind == 3:
            scales, zero, attributes = scales[:1].reshape(()), zero[:1].reshape(()), {}
        names = [self.constant(value) for value in (levels, scales, zero)]
        return self.node("DequantizeLinear", *names, **attributes)

    def layer(self, kind: str) -> None:
        first = self.dequantized(str(self.random.choice(self.tensors)))
        second = self.dequantized(str(self.random.choice(self.tensors))) if kind in PAIRED else ""
        bias = self.constant(self.random.normal(size=WIDTH).astype(np.float32))
        cube = self.constant(np.array([1, WIDTH, WIDTH, WIDTH]))
        if kind == "matmul":
            made = self.node("Add", self.node("MatMul", first, self.weight(WIDTH, WIDTH, axis=1)), bias)
        elif kind == "gemm":
            rows = self.node("Reshape", first, self.constant(np.array([-1, WIDTH])))
            made = self.node("Gemm", rows, self.weight(WIDTH, WIDTH, axis=0), bias, transB=1)
            made = self.node("Reshape", made, cube)
        elif kind == "conv":
            made = self.node("Conv", first, self.weight(WIDTH, WIDTH, 3, 3, axis=0), bias, pads=[1, 1, 1, 1])
        elif kind == "add":
            made = self.node("Add", first, second)
        elif kind == "product":
            made = self.node("MatMul", first, self.node("Transpose", second, perm=[0, 1, 3, 2]))
        elif kind == "concat":
            both = self.node("Concat", first, second, axis=1)
            made = self.node("Conv", both, self.weight(WIDTH, 2 * WIDTH, 1, 1, axis=0), bias)
        else:
            levels = self.node("QuantizeLinear", first, *(names := self.parameters()))
            made = self.node("DequantizeLinear", self.node("Reshape", levels, cube), *names)
        self.tensors.append(made)

    def model(self, opset: int) -> onnx.ModelProto:
        """All tensors that nothing reads are outputs, one of them behind a pair."""
        read = {name for node in self.nodes for name in node.input}
        loose = [name for name in self.tensors if name not in read]
        outputs = [*loose[:-1], self.dequantized(loose[-1])]
        shape = [1, WIDTH, WIDTH, WIDTH]
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", *outputs)]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "random", value[:1], value[1:], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def random_model(seed: int, dtype: Any, layers: list[str], opset: int, weight_bits: int = 8) -> onnx.ModelProto:
    builder = Builder(np.random.default_rng(seed), dtype, weight_bits)
    for kind in layers:
        builder.layer(kind)
    return builder.model(opset)


def run(model: onnx.ModelProto, level: str = "ORT_DISABLE_ALL", seed: int = 0) -> list[NDArray[Any]]:
    """The outputs on values of which a third lies beyond every quantizer's range."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = np.random.default_rng(seed).normal(size=(1, WIDTH, WIDTH, WIDTH)).astype(np.float32)
    values[0, 0] *= 1e4
    return list(session.run(None, {"x": values}))


def quantizers(model: onnx.ModelProto) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Scale and zero point of every QuantizeLinear and DequantizeLinear, by its output."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return {node.output[0]: (constants[node.input[1]], constants[node.input[2]]) for node in nodes}
