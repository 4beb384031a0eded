"""Small graphs with one fault each that makes INT8 slow, and the same graphs with the remedy applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from proto_passes import compress_weights, lower_linears, retarget_activations

from vlm_edge.explain.view import Graph, Int8Speed, Int8View

WIDTH, ROWS, LAYERS = 64, 10, 3
Nodes = list[onnx.NodeProto]
Weights = dict[str, NDArray[Any]]

BETWEEN: dict[str, Callable[[str, str], Nodes]] = {
    "none": lambda x, y: [helper.make_node("Identity", [x], [y])],
    "gelu": lambda x, y: [helper.make_node("Gelu", [x], [y])],
    "softmax": lambda x, y: [helper.make_node("Softmax", [x], [y])],
    "norm": lambda x, y: [helper.make_node("LayerNormalization", [x, "gain", "shift"], [y])],
    "silu": lambda x, y: [
        helper.make_node("Sigmoid", [x], [f"{y}_sigmoid"]),
        helper.make_node("Mul", [x, f"{y}_sigmoid"], [y]),
    ],
}
"""What may stand between two linear layers: input and output name -> nodes."""


def model_of(nodes: Nodes, weights: Weights, shape: Sequence[int | str], output: str) -> onnx.ModelProto:
    """A checked graph from ``x`` to ``output``, both float32."""
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", 21), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return model


def float_chain(between: str = "none", *, batch: int | str = "batch", bias: bool = True) -> onnx.ModelProto:
    """x -> (MatMul, Add, what is between) x 3."""
    generator = np.random.default_rng(0)
    weights: Weights = {}
    nodes: Nodes = []
    if between == "norm":
        weights = {"gain": np.ones(WIDTH, np.float32), "shift": np.zeros(WIDTH, np.float32)}
    name = "x"
    for layer in range(LAYERS):
        weights[f"w{layer}"] = (generator.normal(size=(WIDTH, WIDTH)) / 8).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [name, f"w{layer}"], [f"m{layer}"], name=f"fc{layer}"))
        if bias:
            weights[f"b{layer}"] = generator.normal(size=WIDTH).astype(np.float32)
            nodes.append(helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"a{layer}"]))
        nodes += BETWEEN[between](f"a{layer}" if bias else f"m{layer}", f"y{layer}")
        name = f"y{layer}"
    model = model_of(nodes, weights, (batch, ROWS, WIDTH), name)
    for position, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}{position}"
    return model


def with_pairs(model: onnx.ModelProto, around: frozenset[str], *, signed: bool, outputs: bool = False) -> Any:
    """Q/DQ in front of the data inputs of ``around``, int8 weights for its MatMul; ``outputs``: behind them, too."""
    weights: Weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zero = np.array(0, np.int8) if signed else np.array(128, np.uint8)
    weights |= {"scale": np.array(0.05, np.float32), "zero": zero}
    nodes: Nodes = []
    done: dict[str, str] = {}

    def pair(name: str) -> str:
        if name not in done:
            done[name] = f"{name}_dq"
            nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"], name=f"{name}_Q"))
            restored = helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [done[name]])
            restored.name = f"{name}_DQ"
            nodes.append(restored)
        return done[name]

    def restored_weight(name: str) -> str:
        if f"{name}_levels" not in weights:
            weights[f"{name}_scales"] = np.abs(weights[name]).max(axis=0) / np.float32(127)
            weights[f"{name}_levels"] = np.rint(weights.pop(name) / weights[f"{name}_scales"]).astype(np.int8)
            inputs = [f"{name}_levels", f"{name}_scales"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], name=f"{name}_DQ", axis=1))
        return f"{name}_dq"

    for source in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        if node.op_type in around:
            for place, name in enumerate(node.input):
                if name not in weights:
                    node.input[place] = pair(name)
                elif node.op_type == "MatMul":
                    node.input[place] = restored_weight(name)
        nodes.append(node)
        if outputs and node.op_type in around and node.output[0] != model.graph.output[0].name:
            pair(node.output[0])
    return model_of(
        nodes, weights, [dim.dim_param or dim.dim_value for dim in _dims(model)], model.graph.output[0].name
    )


def _dims(model: onnx.ModelProto) -> Iterator[Any]:
    yield from model.graph.input[0].type.tensor_type.shape.dim


MATMUL = frozenset({"MatMul"})
EVERYTHING = frozenset({"MatMul", "Add", "Gelu", "Softmax", "LayerNormalization", "Sigmoid", "Mul"})


def signed_slow_kernel() -> onnx.ModelProto:
    """Integer kernels with s8 data, as TensorRT's or ARM's form ends up on x86."""
    return lower_linears(with_pairs(float_chain(), MATMUL, signed=True))


def signed_unfused() -> onnx.ModelProto:
    """s8 Q/DQ whose quantizer is read by two layers, which onnxruntime doesn't turn to u8."""
    generator = np.random.default_rng(1)
    nodes: Nodes = []
    weights: Weights = {}
    for name in ("left", "right"):
        weights[name] = (generator.normal(size=(WIDTH, WIDTH)) / 8).astype(np.float32)
        nodes.append(helper.make_node("MatMul", ["x", name], [f"{name}_y"], name=name))
    nodes.append(helper.make_node("Sub", ["left_y", "right_y"], ["y"], name="difference"))
    return with_pairs(model_of(nodes, weights, ("batch", ROWS, WIDTH), "y"), MATMUL, signed=True)


def to_unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same values from u8 data."""
    return retarget_activations(model, signed=False)


def float_convolutions() -> onnx.ModelProto:
    """x (batch, rows, width) as one channel -> two convolutions."""
    generator = np.random.default_rng(2)
    weights: Weights = {
        "one": np.array([1], np.int64),
        "w0": generator.normal(size=(24, 1, 7, 7)).astype(np.float32),
        "w1": generator.normal(size=(1, 24, 7, 7)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["image"], name="image"),
        helper.make_node("Conv", ["image", "w0"], ["inner"], name="conv0", pads=[3] * 4),
        helper.make_node("Conv", ["inner", "w1"], ["outer"], name="conv1", pads=[3] * 4),
        helper.make_node("Squeeze", ["outer", "one"], ["y"], name="rows"),
    ]
    return model_of(nodes, weights, ("batch", ROWS, WIDTH), "y")


def weight_only() -> onnx.ModelProto:
    """Float data, weights behind DequantizeLinear, which stay there for convolutions."""
    return compress_weights(float_convolutions(), decompression="dequantize")


def weight_only_folded() -> onnx.ModelProto:
    """The same weights behind Cast and Mul, which are folded."""
    return compress_weights(float_convolutions(), decompression="cast")


def gemm_blocked() -> onnx.ModelProto:
    """Q/DQ in front of MatMul + Add with fixed shapes, which become Gemm."""
    return with_pairs(float_chain("gelu", batch=1), MATMUL, signed=False)


def gemm_lowered() -> onnx.ModelProto:
    """The same layers as MatMulIntegerToFloat."""
    return lower_linears(gemm_blocked())


def around_float(between: str) -> onnx.ModelProto:
    """Q/DQ around everything, what is between the layers included."""
    return with_pairs(float_chain(between, bias=False), EVERYTHING, signed=False, outputs=True)


def around_products(between: str) -> onnx.ModelProto:
    """The same Q/DQ in front of the layers alone."""
    return with_pairs(float_chain(between, bias=False), MATMUL, signed=False)


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def view_of(model: onnx.ModelProto, folder: Path, *, machine: str = "x86", isa: str = "avx512_vnni") -> Int8View:
    """The graph beside what onnxruntime made of it, for a host that is said to be ``machine``."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = Graph(model)
    return Int8View(
        source=source,
        graph=Graph(onnx.load(folder / "optimized.onnx")),
        machine=machine,
        isa=frozenset({isa}),
        speed=Int8Speed(),
        read=source.constant,
    )
