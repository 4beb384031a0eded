"""The TensorRT engine against a double of NVIDIA's Python API that holds its documented rules and runs onnxruntime.

What is proved here is the order and the arguments of the calls; that a GPU agrees is not measured.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from rtx import nvidia
from tensorrt_names import published
from tiny_graphs import DECODER, DIM, HEADS, WORDS, component, parse, random_weights

from vlm_edge.backends import engine_available, load_engine
from vlm_edge.backends.tensorrt import cuda_memory
from vlm_edge.backends.tensorrt import engine as tensorrt
from vlm_edge.backends.tensorrt.build import plan_of
from vlm_edge.backends.tensorrt.profiles import Range, profile_shapes
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Component

RANGES = {"batch": (1, 1, 4), "new": (1, 1, 1), "question_tokens": (1, 4, 8), "past": (0, 1, 6)}


class FakeCudart:
    """libcudart with host memory: every argument as the C API takes it, every address checked."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.memory: dict[int, Any] = {}

    def cudaDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13000
        return 0

    def cudaGetDeviceCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.devices
        return 0 if self.devices else 100

    def cudaMalloc(self, pointer: Any, size: int) -> int:  # noqa: N802
        if size > 1 << 30:
            return 2
        block = ctypes.create_string_buffer(size)
        pointer._obj.value = ctypes.addressof(block)
        self.memory[ctypes.addressof(block)] = block
        return 0

    def cudaFree(self, address: int) -> int:  # noqa: N802
        del self.memory[address]
        return 0

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> int:  # noqa: N802
        device = target if kind == cuda_memory.HOST_TO_DEVICE else source
        assert size <= len(self.memory[device])
        assert stream == 77
        ctypes.memmove(target, source, size)
        return 0

    def cudaStreamCreate(self, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 77
        return 0

    def cudaStreamSynchronize(self, stream: int) -> int:  # noqa: N802
        assert stream == 77
        return 0

    def cudaGetErrorString(self, code: int) -> bytes:  # noqa: N802
        return {2: b"out of memory", 100: b"no CUDA-capable device is detected"}[code]


class FakeTrt:
    """Just enough of ``import tensorrt``: a plan is the profile's size in text, a line feed, and the ONNX file."""

    __version__ = "11.1.0"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    class Logger:
        ERROR = 2

        def __init__(self, severity: int) -> None:
            assert severity == self.ERROR

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self) -> None:
        self.profiles: list[dict[str, Any]] = []
        self.buildable = True

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        def build(network: Any, _config: Any) -> bytes | None:
            logger.log(self.ILogger.WARNING, "a slow layer")
            if not self.buildable:
                logger.log(self.ILogger.ERROR, "layer 7: no tactic")
            return network.content if self.buildable else None

        def create_network(flags: int) -> Any:
            assert flags == 1 << 1
            return SimpleNamespace(content=None)

        def create_profile() -> Any:
            shapes: dict[str, Any] = {}
            return SimpleNamespace(_shapes=shapes, set_shape=lambda name, *sizes: shapes.update({name: sizes}))

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: SimpleNamespace(
                add_optimization_profile=lambda profile: self.profiles.append(profile._shapes)
            ),
            create_optimization_profile=create_profile,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, logger: object) -> Any:  # noqa: N802
        def parse_from_file(path: str) -> bool:
            network.content = Path(path).read_bytes()
            return b"garbage" not in network.content

        return SimpleNamespace(
            parse_from_file=parse_from_file, num_errors=1, get_error=["node 3: not a model"].__getitem__
        )

    def Runtime(self, logger: object) -> Any:  # noqa: N802
        def deserialize(plan: bytes) -> Any:
            if b"garbage" in plan:
                return None
            return SimpleNamespace(
                create_execution_context=lambda: FakeContext(plan, self.profiles[0]),
                get_tensor_profile_shape=lambda name, index: self.profiles[index][name],
            )

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeContext:
    """IExecutionContext: shapes within the profile, then infer_shapes, then addresses (never null), then execute."""

    def __init__(self, plan: bytes, profile: dict[str, Any]) -> None:
        self._session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self._profile = profile
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._profile[name]
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [value.name for value in self._session.get_inputs() if value.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, new = self._shapes["input_ids"]
        total = self._shapes["past_key_values.0.key"][2] + new
        return (batch, new, len(WORDS)) if name == "logits" else (batch, HEADS, total, DIM)

    def execute_async_v3(self, stream_handle: int) -> bool:
        def at(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            count = int(np.prod(shape))
            raw = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(self._addresses[name])
            return np.frombuffer(raw, dtype, count).reshape(shape)

        feed = {
            value.name: at(value.name, self._shapes[value.name], np.int64 if "int64" in value.type else np.float32)
            for value in self._session.get_inputs()
        }
        for value, result in zip(self._session.get_outputs(), self._session.run(None, feed), strict=True):
            ctypes.memmove(self._addresses[value.name], np.ascontiguousarray(result).ctypes.data, result.nbytes)
        return True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeTrt:
    trt = FakeTrt()
    cudart = FakeCudart()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(cuda_memory, "load_cudart", lambda: cudart)
    return trt


@pytest.fixture
def decoder(tmp_path: Path) -> tuple[Path, Component]:
    model = parse(DECODER, random_weights(2))
    onnx.save(model, tmp_path / "decoder.onnx")
    return tmp_path / "decoder.onnx", component(model, "decoder.onnx")


def build_plan(graph: Path, row: Component, ranges: Mapping[str, Range], plan: Path) -> None:
    plan.write_bytes(plan_of(tensorrt.require_tensorrt(), graph, profile_shapes(row, ranges)))


def feed(batch: int, past: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(past)
    cache = generator.normal(size=(4, batch, HEADS, 5, DIM)).astype(np.float32)
    return {
        "input_ids": generator.integers(0, len(WORDS), (batch, 1)),
        "attention_mask": np.ones((batch, 5), np.int64),
        "cross_key_values.0.key": cache[0],
        "cross_key_values.0.value": cache[1],
        "past_key_values.0.key": cache[2, :, :, :past],
        "past_key_values.0.value": cache[3, :, :, :past],
    }


def test_built_and_run_step_after_step_equals_onnxruntime(
    device: FakeTrt, decoder: tuple[Path, Component], tmp_path: Path
) -> None:
    build_plan(*decoder, RANGES, tmp_path / "decoder.plan")
    assert device.profiles[0]["past_key_values.0.key"] == ((1, HEADS, 0, DIM), (1, HEADS, 1, DIM), (4, HEADS, 6, DIM))
    engine = load_engine("tensorrt", tmp_path / "decoder.plan", decoder[1])
    reference = load_engine("onnxruntime", *decoder)
    for batch, past in ((1, 0), (1, 1), (3, 2), (1, 0), (3, 2)):
        given = feed(batch, past)
        results = engine.infer(given)
        for name, value in reference.infer(given).items():
            np.testing.assert_array_equal(results[name], value)


def test_what_can_not_be_parsed_built_or_loaded_is_named(
    device: FakeTrt, decoder: tuple[Path, Component], tmp_path: Path
) -> None:
    plan = tmp_path / "decoder.plan"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"garbage")
    with pytest.raises(VlmEdgeError, match=r"broken\.onnx: TensorRT 11\.1\.0 can't parse it: node 3"):
        build_plan(broken, decoder[1], RANGES, plan)
    device.buildable = False
    with pytest.raises(VlmEdgeError, match=r"TensorRT 11\.1\.0 can't build it: layer 7: no tactic\n"):
        build_plan(*decoder, RANGES, plan)
    with pytest.raises(VlmEdgeError, match="no range for its dimension 'past'"):
        build_plan(*decoder, {name: RANGES[name] for name in ("batch", "new", "question_tokens")}, plan)
    plan.write_bytes(b"garbage")
    with pytest.raises(VlmEdgeError, match=r"decoder\.plan: .* can't load this plan"):
        load_engine("tensorrt", plan, decoder[1])


@pytest.mark.usefixtures("device")
def test_a_shape_outside_the_profile_is_named(decoder: tuple[Path, Component], tmp_path: Path) -> None:
    build_plan(*decoder, RANGES, tmp_path / "decoder.plan")
    engine = load_engine("tensorrt", tmp_path / "decoder.plan", decoder[1])
    before = engine.infer(feed(1, 0))
    with pytest.raises(VlmEdgeError, match="outside the plan's profile"):
        engine.infer({**feed(1, 0), "input_ids": np.ones((1, 2), np.int64)})
    np.testing.assert_array_equal(engine.infer(feed(1, 0))["logits"], before["logits"])


def test_the_double_has_no_name_that_nvidia_s_bindings_lack(decoder: tuple[Path, Component]) -> None:
    """And so the code uses none: whatever it asks of the double is there in TensorRT 10 and 11, and in TensorRT-RTX."""
    trt = FakeTrt()
    builder = trt.Builder(None)
    trt.profiles.append({})
    engine = trt.Runtime(None).deserialize_cuda_engine(decoder[0].read_bytes())
    double = {
        "Builder": builder,
        "IBuilderConfig": builder.create_builder_config(),
        "IOptimizationProfile": builder.create_optimization_profile(),
        "OnnxParser": trt.OnnxParser(None, None),
        "Runtime": trt.Runtime(None),
        "ICudaEngine": engine,
        "IExecutionContext": engine.create_execution_context(),
        "ILogger": trt.ILogger,
        "Logger": trt.Logger,
        "NetworkDefinitionCreationFlag": trt.NetworkDefinitionCreationFlag,
    }
    rtx = nvidia()
    for version, names in (published() | {rtx.__version__: {name: dir(getattr(rtx, name)) for name in double}}).items():
        for name, each in double.items():
            mine = {attribute for attribute in dir(each) if not attribute.startswith("_")}
            assert mine <= set(names[name]), f"{name} of {version}"
    assert {version.split(".")[0] for version in published()} == {"10", "11"}


ELSEWHERE = "; a TensorRT engine is built and measured on the device that runs it"


def refused(decoder: tuple[Path, Component]) -> str:
    """The reason why TensorRT can't run here; loading and building say it too, and write nothing."""
    reason = engine_available("tensorrt")
    assert reason is not None
    plan = decoder[0].with_suffix(".plan")
    for attempt in (lambda: load_engine("tensorrt", *decoder), lambda: build_plan(*decoder, RANGES, plan)):
        with pytest.raises(VlmEdgeError) as error:
            attempt()
        assert reason in error.value.message
    assert not plan.exists()
    return reason


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch, decoder: tuple[Path, Component]) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it raises ModuleNotFoundError
    assert refused(decoder) == f"the Python package tensorrt is not installed{ELSEWHERE}"


def test_bindings_without_libraries_are_named(
    monkeypatch: pytest.MonkeyPatch, decoder: tuple[Path, Component], tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    reason = f"can't load its libraries: libnvinfer.so.10: cannot open shared object file{ELSEWHERE}"
    assert refused(decoder) == f"the Python package tensorrt {reason}"


@pytest.mark.usefixtures("device")
def test_a_version_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, decoder: tuple[Path, Component]) -> None:
    monkeypatch.setattr(FakeTrt, "__version__", "8.6.2")  # JetPack 6.0
    assert refused(decoder) == f"TensorRT is 8.6.2, and 10.0 is the oldest that takes strongly typed graphs{ELSEWHERE}"


@pytest.mark.usefixtures("device")
def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, decoder: tuple[Path, Component]) -> None:
    monkeypatch.setattr(cuda_memory, "driver_missing", lambda: "no NVIDIA driver is installed")
    assert refused(decoder) == f"no NVIDIA driver is installed{ELSEWHERE}"


@pytest.mark.parametrize(
    ("driver", "code", "devices", "reason"),
    [
        (0, 35, 0, "no NVIDIA driver is installed"),
        (11040, 35, 0, "the NVIDIA driver is for CUDA 11.4, which is too old"),
        (12090, 100, 0, "no GPU can be used (CUDA error 100)"),
        (12090, 0, 0, "no GPU can be used (CUDA error 0)"),
        (12090, 0, 1, None),
    ],
)
def test_what_running_needs_is_named(
    monkeypatch: pytest.MonkeyPatch, driver: int, code: int, devices: int, reason: str | None
) -> None:
    def answer(number: int, result: int) -> Any:
        def call(pointer: Any) -> int:
            pointer._obj.value = number
            return result

        return call

    cudart = SimpleNamespace(cudaDriverGetVersion=answer(driver, 0), cudaGetDeviceCount=answer(devices, code))
    monkeypatch.setattr(cuda_memory, "load_cudart", lambda: cudart)
    assert cuda_memory.driver_missing() == reason


def test_cuda_errors_are_raised_in_words() -> None:
    stream = cuda_memory.Stream(FakeCudart())
    with pytest.raises(VlmEdgeError, match=r"cudaMalloc failed: out of memory \(2\)"):
        stream.buffer("x", 1 << 31)


def test_buffers_grow_and_are_freed() -> None:
    cudart = FakeCudart()
    stream = cuda_memory.Stream(cudart)
    small = stream.buffer("x", 0)
    assert small
    assert stream.buffer("x", 1) == small
    assert stream.buffer("x", 100) == stream.buffer("x", 50)
    assert len(cudart.memory) == 1
