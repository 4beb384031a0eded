"""TensorRT-RTX for tests: plans of exported components, and its answer to a graph."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from vlm_edge.backends.tensorrt.build import plan_of
from vlm_edge.backends.tensorrt.profiles import dimension_ranges, profile_shapes
from vlm_edge.backends.tensorrt_rtx.wheels import PRODUCT, bindings
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.stages.compile_references import BATCHES


def nvidia() -> Any:
    """The bindings. Only a platform for which NVIDIA has no wheels skips the test: `make test` installs them."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("NVIDIA's wheels are for x86-64 Linux")
    return bindings()


def plan(path: Path, name: str, manifest: PipelineManifest) -> bytes:
    """The plan of the graph in ``path``, with the profiles of the manifest's component ``name``."""
    shapes = profile_shapes(manifest.components[name], dimension_ranges(manifest, max(BATCHES)))
    return bytes(plan_of(nvidia(), path, shapes, PRODUCT))


@dataclass(frozen=True)
class Answer:
    """``plan``: None where the graph is refused. ``words``: warnings and errors."""

    plan: bytes | None
    words: str


def answer(model: onnx.ModelProto) -> Answer:
    """The compiler's plan of a graph of fixed shapes, and its messages."""
    trt = nvidia()
    words: list[str] = []

    class Log(trt.ILogger):
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
