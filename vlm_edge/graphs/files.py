"""Graph files with their weights mapped, and onnxruntime sessions of graphs in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
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
LARGEST_PREPACKED_BYTES = 256_000_000
"""Weights above this are not packed for onnxruntime's products, which takes as much memory again: a product with 1,024
rows takes 1.05 times as long, one with 70 rows 1.25 times, one with a single row as long."""
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


def unmap(model: ir.Model) -> None:
    """Release mapped weights; they are mapped again when they are next read."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            with suppress(BufferError):
                value.const_value.release()


class GraphSession:
    """onnxruntime on a graph in memory: weights in a file are mapped from it, others are handed over as they are.

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
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads take no CPU where they wait
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # a Shape runs at once, so that its input can go
        options.enable_cpu_mem_arena = False  # memory goes back between runs of different shapes
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
        if level == "disabled" or weight_bytes(model) > LARGEST_PREPACKED_BYTES:
            options.add_session_config_entry("session.disable_prepacking", "1")
        unmap(model)
        folder = _folder_of(model)
        if folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        content, self._weights = _serialized(model, outputs, folder)
        options.add_external_initializers(list(self._weights), list(self._weights.values()))
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(self, names: Iterable[str], feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The named outputs of one run."""
        wanted, options = list(names), ort.RunOptions()
        options.only_execute_path_to_fetches = True
        return dict(zip(wanted, self._session.run(wanted, dict(feed), options), strict=True))


def _serialized(model: ir.Model, outputs: Iterable[str], folder: str) -> tuple[bytes, dict[str, ort.OrtValue]]:
    """The graph without its larger weights, and those by name that are not in files of ``folder``."""
    tensors = {value: value.const_value for value in model.graph.initializers.values() if value.const_value is not None}
    weights = {}
    try:
        for value, tensor in tensors.items():
            name, mapped = str(value.name), isinstance(tensor, ir.ExternalTensor)
            if isinstance(tensor, ir.ExternalTensor) and str(tensor.base_dir) == folder:
                continue
            if tensor.nbytes >= _SHARED_BYTES and tensor.dtype.bitwidth >= 8 and not value.is_graph_input():
                numbers = np.require(tensor.numpy(), requirements=["C", "A"])
                weights[name] = ort.OrtValue.ortvalue_from_numpy(numbers)
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor("memory", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
            elif mapped:
                value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
        proto = ir.to_proto(model)
    finally:
        for value, tensor in tensors.items():
            value.const_value = tensor
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
    return proto.SerializeToString(), weights


def _folder_of(model: ir.Model) -> str:
    """The folder that most of a graph's weights are mapped from; empty where none are."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    folders = Counter(str(tensor.base_dir) for tensor in tensors if isinstance(tensor, ir.ExternalTensor))
    return folders.most_common(1)[0][0] if folders else ""
