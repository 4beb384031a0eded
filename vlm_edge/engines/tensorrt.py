"""TensorRT 10 and 11: build plans from strongly typed ONNX with explicit Q/DQ, and run them.

Written to NVIDIA's Python API of TensorRT 11 (a strongly typed network is the only kind there; 10 takes the flag), and
importable without tensorrt. Plans belong to one GPU model and one TensorRT version: they are built on the device.
Nothing here was run where this was written, since libnvinfer is not on PyPI: results are NOT MEASURED until a device
measures them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.engines.base import Array, Feed
from vlm_edge.engines.cuda_memory import Stream, device_count, load_cudart
from vlm_edge.engines.feed import FeedChecker, Signature
from vlm_edge.engines.options import EngineOptions, read_options
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import (
    CROSS_PREFIX,
    NEW,
    PAST,
    TOTAL,
    Component,
    PatchGrid,
    PatchRows,
    PipelineManifest,
)
from vlm_edge.processing.patch_rows import most_patches

Range = tuple[int, int, int]
"""min, opt and max of one dynamic dimension in an optimization profile."""


def unavailable() -> str | None:
    """Why TensorRT can't run here, or None."""
    missing = []
    try:
        importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:  # the bindings without libnvinfer raise either
        missing.append(f"tensorrt with libnvinfer ({error})")
    cudart = load_cudart()
    if cudart is None:
        missing.append("libcudart")
    elif device_count(cudart) == 0:
        missing.append("a CUDA GPU")
    if not missing:
        return None
    return f"not available here, so NOT MEASURED; missing: {', '.join(missing)}. Run it on the device"


def _require() -> Any:
    """The tensorrt module."""
    if (reason := unavailable()) is not None:
        raise VlmEdgeError(f"TensorRT: {reason}", "install JetPack, or TensorRT 10 or later, on the device")
    return importlib.import_module("tensorrt")


def dimension_ranges(manifest: PipelineManifest, max_batch: int) -> dict[str, Range]:
    """A range for every dynamic dimension of a pipeline's inputs, tuned for one sample at a time.

    Text is as long as the tokenizer lets it be. A decoder takes one token after the other; where it is given a prompt,
    that comes at once, and what it makes comes behind it. A list of patches is as long as the image processing lets it
    be. Image tokens that stand in a prompt are no more than fit into it; those that cross-attention reads are those of
    as many images as there are layouts for. Every other dimension counts samples.
    """
    rows = manifest.components.values()
    names = {dim for row in rows for spec in row.inputs.values() for dim in spec.shape}
    fixed = manifest.text.pad_to if manifest.text else 1
    longest = fixed or (manifest.text.max_length if manifest.text else 1)
    usual = fixed or min(16, longest)
    made = manifest.generation.max_new_tokens if manifest.generation else 1
    prompt = longest if manifest.pipeline in ("generate", "captioning") else 1
    past = prompt + made - 1
    known = {
        "question_tokens": (1, usual, longest),
        "tokens": (1, usual, longest),
        NEW: (1, 1, prompt),
        PAST: (0, min(usual, past), past),
        TOTAL: (1, min(usual, past) + 1, past + prompt),
    }
    seen = [row.inputs["image_features"].shape for row in rows if "image_features" in row.inputs]
    image = max((shape[1] for shape in seen if len(shape) == 3 and isinstance(shape[1], int)), default=0)
    known["memory_tokens"] = (1, image + usual, image + longest)
    if manifest.prompt:
        pictures, each = max(1, len(manifest.prompt.layouts) - 1), min(manifest.prompt.image_tokens, longest)
        crosses = [spec.shape[2] for row in rows for name, spec in row.outputs.items() if name.startswith(CROSS_PREFIX)]
        if crosses and isinstance(crosses[0], int):
            known["image_tokens"] = (1, crosses[0], pictures * crosses[0])
        else:
            known["image_tokens"] = (0, each, longest * max_batch)
    tiles = manifest.image.tiles
    if isinstance(tiles, PatchRows):
        most = most_patches(manifest.image, tiles)
        known["patches"] = (1, most, most)
    if isinstance(tiles, PatchGrid):
        side = tiles.patch * tiles.merge
        least, most = (max(1, pixels // side**2) for pixels in (tiles.min_pixels, tiles.max_pixels))
        known["groups"] = (least, most, most)
    return {name: known.get(name, (1, 1, max_batch)) for name in names if isinstance(name, str)}


def profile_shapes(component: Component, ranges: Mapping[str, Range]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Input name -> (min, opt, max) shapes of an optimization profile, for every input with a dynamic dimension.

    Raises:
        VlmEdgeError: a dynamic dimension has no range.
    """
    shapes = {}
    for name, spec in component.inputs.items():
        if all(isinstance(dim, int) for dim in spec.shape):
            continue
        if unknown := [dim for dim in spec.shape if isinstance(dim, str) and dim not in ranges]:
            raise VlmEdgeError(f"input {name!r}: no range for its dimension {unknown[0]!r}; known: {', '.join(ranges)}")
        shapes[name] = tuple(
            tuple(dim if isinstance(dim, int) else ranges[dim][which] for dim in spec.shape) for which in range(3)
        )
    return shapes


def build_plan(onnx_path: Path, component: Component, ranges: Mapping[str, Range], plan_path: Path) -> None:
    """Build one component's plan for this machine's GPU and write it to ``plan_path``; see :func:`plan_of`.

    Raises:
        VlmEdgeError: TensorRT can't run here, can't parse the graph, or can't build it.
    """
    plan_path.write_bytes(plan_of(_require(), onnx_path, component, ranges))


def plan_of(
    trt: Any, onnx_path: Path, component: Component, ranges: Mapping[str, Range], product: str = "TensorRT"
) -> memoryview:
    """The serialized plan of one component.

    Precision is the graph's own: float32 or float16 tensors, and INT8 where Q/DQ pairs say so (symmetric, signed).

    Args:
        trt: the Python bindings of TensorRT or TensorRT-RTX, whose builders have one API.
        product: its name, for messages.

    Raises:
        VlmEdgeError: it can't parse the graph or can't build it. The message holds NVIDIA's own words.
    """
    log = _error_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    compiler = f"{product} {trt.__version__}"
    if not parser.parse_from_file(str(onnx_path)):
        faults = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise VlmEdgeError(f"{onnx_path}: {compiler} can't parse it: {faults}", "export it again")
    config = builder.create_builder_config()
    if shapes := profile_shapes(component, ranges):
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        faults = "; ".join(log.errors)
        raise VlmEdgeError(f"{onnx_path}: {compiler} can't build it: {faults}", "leave the layer it names in float")
    return memoryview(plan)


def _error_log(trt: Any) -> Any:
    """A logger whose ``errors`` are the messages of errors."""

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(msg)

    return ErrorLog()


class TensorRtEngine:
    """One plan in one execution context, inputs and outputs copied to and from the GPU."""

    name = "tensorrt"

    def __init__(
        self, model_path: Path, component: Component, *, threads: int, options: Mapping[str, str | int | float | bool]
    ) -> None:
        trt = _require()
        read_options("tensorrt", EngineOptions, options)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(model_path.read_bytes())
        if self._engine is None:
            raise VlmEdgeError(
                f"{model_path}: TensorRT {trt.__version__} can't load this plan",
                "build it on this device: a plan belongs to one GPU model and one TensorRT version",
            )
        self._context = self._engine.create_execution_context()
        self._stream = Stream(load_cudart())
        self.inputs, self.outputs = component.inputs, component.outputs
        self._path = model_path
        self._checker = FeedChecker(component.inputs, str(model_path))
        self._shaped: Signature | None = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; see :class:`vlm_edge.engines.base.Engine`."""
        signature = self._checker.check(feed)
        arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        for name, array in arrays.items():
            address = self._stream.buffer(name, array.nbytes)
            self._context.set_tensor_address(name, address)
            self._stream.upload(array, address)
        if signature != self._shaped:
            self._shaped = None  # a shape that is refused leaves the context between two signatures
            self._set_shapes(arrays)
            self._shaped = signature
        results = {}
        for name, spec in self.outputs.items():
            result = np.empty(tuple(self._context.get_tensor_shape(name)), spec.dtype)
            self._context.set_tensor_address(name, self._stream.buffer(name, result.nbytes))
            results[name] = result
        if not self._context.execute_async_v3(self._stream.handle):
            raise VlmEdgeError(f"{self._path}: TensorRT failed to run it", "read its log above")
        for name, result in results.items():
            self._stream.download(self._stream.buffer(name, result.nbytes), result)
        self._stream.synchronize()
        return results

    def _set_shapes(self, arrays: Mapping[str, Array]) -> None:
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, array.shape):
                limits = self._engine.get_tensor_profile_shape(name, 0)
                raise VlmEdgeError(
                    f"{self._path}: input {name!r}: {list(array.shape)} is outside the plan's profile {limits}",
                    "compile with a wider range",
                )
        if unknown := self._context.infer_shapes():
            raise VlmEdgeError(f"{self._path}: TensorRT can't infer the shapes of {', '.join(unknown)}")
