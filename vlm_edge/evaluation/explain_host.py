"""A CPU's 8-bit integer kernels: those that it lacks by its flags, and the measured speed of onnxruntime's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vlm_edge.backends.base import Array
from vlm_edge.evaluation.host import host_record
from vlm_edge.explain.view import Int8Speed
from vlm_edge.machine import Machine, kernels, machine

_ROWS, _INNER, _COLUMNS = 64, 512, 512
_REPETITIONS = 12


_LACKS = {
    "AVX2": "onnxruntime's integer kernels fall back to SSE: INT8 may lose against float",
    "AVX512": "kernels work on 256 bits at a time",
    "VNNI": "a product of 8-bit integers takes 3 instructions, gains less over float, and u8 x s8 may saturate at 16 "
    "bits: quantize for `isa: x86` (7-bit weights)",
    "AMX": "no tile unit: matrix products of many rows run on VNNI",
    "dot product": "INT8 products are widened by hand and gain little over float",
    "i8mm": "no 8-bit matrix instruction: products run on the dot product",
}
"""Consequence of the absence of each INT8 kernel (:data:`vlm_edge.machine.KERNELS`), the worst first."""


def lacks(of: Machine, isa: frozenset[str]) -> dict[str, str]:
    """Kernels that a CPU lacks, the worst first, each with the consequence."""
    have = kernels(of, isa)
    return {name: means for name, means in _LACKS.items() if not have.get(name, True)}


def describe_host() -> tuple[dict[str, Any], Machine, frozenset[str]]:
    """CPU, cores, instruction sets and lacking kernels as JSON values; the kind of machine; its instruction sets."""
    record = host_record()
    family, isa = machine(record["machine"]), frozenset(record["isa"])
    rows = [{"name": name, "means": means} for name, means in lacks(family, isa).items()]
    return {name: record[name] for name in ("cpu", "machine", "isa", "cores")} | {"lacks": rows}, family, isa


def measure_speed() -> Int8Speed:
    """Time one matrix product in each pair of types, on one thread, in turns; the least of 12 runs (about 0.1 s)."""
    generator = np.random.default_rng(0)
    runs = [_float_product(generator), *(_integer_product(generator, *types) for types in (_U8S8, _U8U8, _S8S8))]
    best = [float("inf")] * len(runs)
    for _ in range(_REPETITIONS):
        for index, run in enumerate(runs):
            began = time.perf_counter()
            run()
            best[index] = min(best[index], time.perf_counter() - began)
    floating, u8s8, u8u8, s8s8 = best
    return Int8Speed(max(1.0, floating / u8s8), max(1.0, u8u8 / u8s8), max(1.0, s8s8 / u8s8), measured=True)


_U8S8, _U8U8, _S8S8 = (np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)


def _float_product(generator: np.random.Generator) -> Callable[[], object]:
    weight = generator.normal(size=(_INNER, _COLUMNS)).astype(np.float32)
    data = generator.normal(size=(_ROWS, _INNER)).astype(np.float32)
    return _product("MatMul", data, {"w": weight})


def _integer_product(
    generator: np.random.Generator, data_type: type[np.integer[Any]], weight_type: type[np.integer[Any]]
) -> Callable[[], object]:
    data: Array = generator.integers(0, 100, (_ROWS, _INNER)).astype(data_type)
    weight: Array = generator.integers(0, 100, (_INNER, _COLUMNS)).astype(weight_type)
    zeros: dict[str, Array] = {"zero": np.array(3, data_type), "w_zero": np.array(0, weight_type)}
    return _product("MatMulInteger", data, {"w": weight, **zeros})


def _product(op_type: str, data: Any, constants: dict[str, Any]) -> Callable[[], object]:
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *constants], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(data.dtype), data.shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": data})
