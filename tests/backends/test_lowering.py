"""Which form a target gets, and how a host's instruction set is told."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from vlm_edge.backends.lowering import lowering_of, resolve_isa
from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import Processor


@pytest.mark.parametrize(
    ("engine", "isa", "signed", "symmetric", "weight_bits"),
    [
        ("onnxruntime", "x86-vnni", False, False, 8),
        ("onnxruntime", "x86", False, False, 7),
        ("onnxruntime", "arm", True, False, 8),
        ("openvino", "x86-vnni", False, False, 8),
        ("tensorrt", "cuda", True, True, 8),
    ],
)
def test_every_target_has_its_form(engine: str, isa: Any, signed: bool, symmetric: bool, weight_bits: int) -> None:
    form = lowering_of(engine, isa)
    assert (form.signed, form.symmetric, form.weight_bits) == (signed, symmetric, weight_bits)
    assert form.rounds_outputs == (engine == "onnxruntime")


def test_an_engine_without_a_form_is_named() -> None:
    with pytest.raises(VlmEdgeError, match="coreml"):
        lowering_of("coreml", "arm")


@pytest.mark.parametrize(
    ("machine", "flags", "isa"),
    [
        ("x86_64", "sse4_2 avx2 avx512_vnni", "x86-vnni"),
        ("AMD64", "avx2 avx_vnni", "x86-vnni"),
        ("x86_64", "sse4_2 avx2", "x86"),
        ("aarch64", "asimd asimddp", "arm"),
        ("arm64", None, "arm"),
        ("x86_64", None, "x86"),
    ],
)
def test_the_host_s_instruction_set(machine: str, flags: str | None, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr("vlm_edge.machine.processor", lambda: Processor(None, frozenset((flags or "").split())))
    assert resolve_isa("auto", "onnxruntime") == isa
    assert resolve_isa("auto", "tensorrt") == "cuda"
    assert resolve_isa("x86", "onnxruntime") == "x86"


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(VlmEdgeError, match="sparc"):
        resolve_isa("sparc", "onnxruntime")
