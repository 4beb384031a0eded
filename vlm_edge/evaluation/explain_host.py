"""What a CPU can do with 8-bit integers: what it lacks by its flags, and how fast onnxruntime's kernels are on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlm_edge.engines.base import Array
from vlm_edge.evaluation.host import host_record
from vlm_edge.numerics.int8_view import Int8Speed

Machine = Literal["x86", "arm", "other"]

_ROWS, _INNER, _COLUMNS = 64, 512, 512
_REPETITIONS = 12


@dataclass(frozen=True)
class Lack:
    """An instruction set that INT8 would use and this CPU has not, and what that means."""

    name: str
    any_of: tuple[str, ...]
    means: str


_LACKS: dict[Machine, tuple[Lack, ...]] = {
    "x86": (
        Lack("AVX2", ("avx2",), "onnxruntime's integer kernels fall back to SSE: INT8 may lose against float"),
        Lack("AVX512", ("avx512f",), "kernels work on 256 bits at a time"),
        Lack(
            "VNNI",
            ("avx512_vnni", "avx_vnni"),
            "a product of 8-bit integers takes 3 instructions, gains less over float, and u8 x s8 may saturate at 16 "
            "bits: quantize for `isa: x86` (7-bit weights)",
        ),
        Lack("AMX", ("amx_int8",), "no tile unit: matrix products of many rows run on VNNI"),
    ),
    "arm": (
        Lack("dot product", ("asimddp",), "INT8 products are widened by hand and gain little over float"),
        Lack("i8mm", ("i8mm",), "no 8-bit matrix instruction: products run on the dot product"),
    ),
    "other": (),
}


def machine_of(record: dict[str, Any]) -> Machine:
    """The family of the host's instruction set."""
    known: dict[str, Machine] = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
    return known.get(str(record["machine"]).lower(), "other")


def lacks(machine: Machine, isa: frozenset[str]) -> list[Lack]:
    """What this CPU lacks, in the order in which it matters."""
    return [lack for lack in _LACKS[machine] if not isa.intersection(lack.any_of)]


def describe_host() -> tuple[dict[str, Any], Machine, frozenset[str]]:
    """The record's parts that matter here, the machine, and its instruction sets."""
    record = host_record()
    machine, isa = machine_of(record), frozenset(record["isa"])
    rows = [{"name": lack.name, "means": lack.means} for lack in lacks(machine, isa)]
    return {name: record[name] for name in ("cpu", "machine", "isa", "cores")} | {"lacks": rows}, machine, isa


def measure_speed() -> Int8Speed:
    """Time one matrix product in each form, on one thread, in turns; the least of a few runs each (about 0.1 s)."""
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
