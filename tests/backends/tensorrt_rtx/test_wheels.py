"""TensorRT-RTX is found and loaded, builds a graph without a GPU, and says in one sentence what is missing."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from rtx import nvidia
from tiny_graphs import DECODER, component, parse, random_weights

from vlm_edge.backends.tensorrt.build import plan_of
from vlm_edge.backends.tensorrt.profiles import Range, profile_shapes
from vlm_edge.backends.tensorrt_rtx import wheels
from vlm_edge.errors import VlmEdgeError

RANGES = {"batch": (1, 1, 4), "new": (1, 1, 1), "question_tokens": (1, 4, 8), "past": (0, 1, 6)}


def decoder(folder: Path, operator: str = "", ranges: Mapping[str, Range] = RANGES) -> tuple[Path, Any]:
    """A decoder's step, and its profile; ``operator`` takes the place of its first node's."""
    model = parse(DECODER, random_weights(2))
    row = component(model, "decoder.onnx")
    if operator:
        model.graph.node[0].op_type, model.graph.node[0].name = operator, "first"
    onnx.save(model, folder / "decoder.onnx")
    return folder / "decoder.onnx", profile_shapes(row, ranges)


def test_a_plan_is_built_without_a_gpu(tmp_path: Path) -> None:
    plan = plan_of(nvidia(), *decoder(tmp_path), wheels.PRODUCT)
    assert len(plan) > (tmp_path / "decoder.onnx").stat().st_size


def test_a_refusal_names_the_file_the_node_and_nvidia_s_words(tmp_path: Path) -> None:
    with pytest.raises(VlmEdgeError, match=r"decoder\.onnx: TensorRT-RTX 1\.\S+ can't parse it: .*first.*UNSUPPORTED"):
        plan_of(nvidia(), *decoder(tmp_path, "Unique"), wheels.PRODUCT)


def test_what_the_builder_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    """A profile that holds no shape: its largest size is below its smallest."""
    ranges = RANGES | {"past": (6, 1, 0)}
    with pytest.raises(VlmEdgeError, match=r"decoder\.onnx: TensorRT-RTX 1\.\S+ can't build it: .*past_key_values"):
        plan_of(nvidia(), *decoder(tmp_path, ranges=ranges), wheels.PRODUCT)


@pytest.mark.parametrize("wheel", [wheels.LIBRARIES_WHEEL, wheels.BINDINGS_WHEEL])
def test_an_absent_wheel_is_named(monkeypatch: pytest.MonkeyPatch, wheel: str) -> None:
    found = metadata.distribution
    monkeypatch.setattr(metadata, "distribution", lambda name: found("no-such-wheel" if name == wheel else name))
    with pytest.raises(VlmEdgeError, match=f"TensorRT-RTX: the package {wheel} is not installed\n") as error:
        nvidia()
    assert error.value.hint == "pip install 'vlm-edge[tensorrt-rtx]'"


def test_wheels_of_two_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata.distribution
    newer = SimpleNamespace(version="1.8.0.7")
    monkeypatch.setattr(metadata, "distribution", lambda name: newer if name == wheels.BINDINGS_WHEEL else found(name))
    with pytest.raises(
        VlmEdgeError, match=r"bindings is 1\.8\.0\.7, but \S+ 0\.5\.0 holds libtensorrt_rtx\.so\.\* of 1"
    ):
        nvidia()


def test_a_platform_without_wheels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(VlmEdgeError, match=r"NVIDIA's wheels are for x86-64 Linux, this is aarch64 linux\n"):
        wheels.bindings()


def test_a_file_that_is_no_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvidia()
    monkeypatch.setattr(wheels, "_folder", lambda _: tmp_path)
    for name in wheels.LIBRARIES:
        (tmp_path / f"{name}1.7.1").write_bytes(b"not a library")
    with pytest.raises(VlmEdgeError, match=r"libtensorrt_rtx\.so\.1\.7\.1 can't be loaded: "):
        wheels.bindings()
