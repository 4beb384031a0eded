"""Graph files with their weights mapped, and onnxruntime sessions of graphs in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import usable_cpus

EXTERNAL_DATA_BYTES = 64_000_000
"""Above this the weights go beside the graph: they are then written one by one and read as mapped pages, where a
protobuf message is first put together in memory, twice; and it ends at 2 GiB."""
_SHARED_BYTES = 4096
"""Smaller constants are part of a session's graph, larger ones are read from where they are."""
_LEVELS = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC"}


def load_graph(path: Path) -> ir.Model:
    """A graph whose external weights are mapped when they are asked for.

    Raises:
        VlmEdgeError: the file is no ONNX graph.
    """
    try:
        return ir.load(path)
    except DecodeError as error:
        reason = f"{path}: not an ONNX file, or it is corrupt: {error}"
        raise VlmEdgeError(reason, "export or compile the model again") from error


def weight_bytes(model: ir.Model) -> int:
    """Of all initializers."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def graph_bytes(path: Path) -> int:
    """A graph file's bytes on disk, with the weights beside it."""
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.is_file())


def save_graph(model: ir.Model, path: Path) -> None:
    """Write ``path``, and ``path.data`` with the weights above :data:`EXTERNAL_DATA_BYTES`; the same bytes every time.

    The folder must not be the one that the model's weights are mapped from.
    """
    data = path.with_name(f"{path.name}.data")
    if weight_bytes(model) > EXTERNAL_DATA_BYTES:
        ir.save(model, path, external_data=data.name)
    else:
        ir.save(ir.external_data.load_to_model(model), path)
        data.unlink(missing_ok=True)


class GraphSession:
    """onnxruntime on a graph in memory, whose weights are read where they are: nothing is copied or written.

    Args:
        model: may hold more than a protobuf message can.
        outputs: names of inner tensors to give beside the graph's own outputs.
        level: of onnxruntime's graph optimization.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Iterable[str] = (),
        *,
        threads: int = 1,
        level: Literal["disabled", "basic"] = "basic",
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = min(threads, usable_cpus())
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False  # memory goes back between runs of different shapes
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
        content, self._weights = _serialized(model, outputs)
        options.add_external_initializers(list(self._weights), list(self._weights.values()))
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(self, names: Iterable[str], feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The named outputs of one run."""
        wanted, options = list(names), ort.RunOptions()
        options.only_execute_path_to_fetches = True
        return dict(zip(wanted, self._session.run(wanted, dict(feed), options), strict=True))


def _serialized(model: ir.Model, outputs: Iterable[str]) -> tuple[bytes, dict[str, ort.OrtValue]]:
    """The graph without its larger weights, and those by name."""
    tensors = {value: value.const_value for value in model.graph.initializers.values() if value.const_value is not None}
    weights = {}
    try:
        for value, tensor in tensors.items():
            name = str(value.name)
            if tensor.nbytes >= _SHARED_BYTES and tensor.dtype.bitwidth >= 8 and not value.is_graph_input():
                numbers = np.require(tensor.numpy(), requirements=["C", "A"])
                weights[name] = ort.OrtValue.ortvalue_from_numpy(numbers)
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor("memory", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
        proto = ir.to_proto(model)
    finally:
        for value, tensor in tensors.items():
            value.const_value = tensor
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
    return proto.SerializeToString(), weights
