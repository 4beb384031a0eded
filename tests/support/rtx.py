"""TensorRT-RTX for tests: plans of exported components, its answer to a graph, and what a plan computes in floats."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from vlm_edge.backends.tensorrt.compile import plan_of
from vlm_edge.backends.tensorrt.profiles import dimension_ranges
from vlm_edge.backends.tensorrt_rtx.library import bindings
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.stages.compile_references import BATCHES

PRODUCT = "TensorRT-RTX"


def nvidia() -> Any:
    """The bindings. Only a platform for which NVIDIA has no wheels skips the test: `make test` installs them."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("NVIDIA's wheels are for x86-64 Linux")
    return bindings()


def plan(path: Path, name: str, manifest: PipelineManifest) -> bytes:
    """The plan of the graph in ``path``, with the profiles of the manifest's component ``name``."""
    ranges = dimension_ranges(manifest, max(BATCHES))
    return bytes(plan_of(nvidia(), path, manifest.components[name], ranges, PRODUCT))


@dataclass(frozen=True)
class Answer:
    """``plan``: None where the graph is refused. ``words``: warnings and errors."""

    plan: bytes | None
    words: str


def answer(model: onnx.ModelProto) -> Answer:
    """What the compiler says to a graph of fixed shapes."""
    trt = nvidia()
    words: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.WARNING, trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                words.append(msg)

    builder = trt.Builder(log := Log())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(model.SerializeToString())
    words += [str(parser.get_error(index)) for index in range(parser.num_errors)]
    plan = builder.build_serialized_network(network, builder.create_builder_config()) if parsed else None
    return Answer(None if plan is None else bytes(plan), "\n".join(words))


_PRODUCT = re.compile(rb"\n +(?:corrltn|fully_connected)=\{ (.*?) layers=\"([^\"]*)\"", re.DOTALL)
_TENSOR = re.compile(rb"tensor=\{ [^\n]*?name=\"([^\"]*)\"[^\n]*? type=(\w+) \}")
_INPUTS = re.compile(rb" input=\{([^}]*)\}")


def in_float(plan: bytes) -> set[str]:
    """The ONNX nodes whose convolution or matrix product reads a factor that is no 8-bit integer.

    A plan holds its program as text: tensors with their types, and operators with their inputs and the ONNX nodes that
    they were made of.
    """
    types = {match[1]: match[2] for match in _TENSOR.finditer(plan)}
    found: set[str] = set()
    for body, layers in _PRODUCT.findall(plan):
        inputs = _INPUTS.search(b" " + body)
        assert inputs is not None
        factors = re.findall(rb"\"([^\"]*)\"", inputs[1])[:2]
        if any(types[factor] != b"int8" for factor in factors):
            found |= {name.decode() for name in re.findall(rb"ONNX Layer: ([^\]]*)\]", layers)}
    return found
