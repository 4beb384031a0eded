"""Which INT8 form an engine fuses, on which instruction set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import kernels, machine
from vlm_edge.numerics.quant_weights import Decompression

Isa = Literal["x86-vnni", "x86", "arm", "cuda"]


@dataclass(frozen=True)
class QuantForm:
    """How a graph is quantized for one engine.

    signed: activations are s8, else u8. OpenVINO 2026.4 takes both, but pads convolutions of s8 data with a zero point
        wrongly: cosine 0.89 instead of 0.97 on a MobileViT.
    symmetric: activation zero points stand for the real 0 in the middle of the range (TensorRT has no others).
    weight_bits: 7 where the multiply-add of u8 and s8 saturates at 16 bits.
    kernels: linear layers and dense convolutions are written as onnxruntime's own integer operators, not as Q/DQ
        pairs, and all else stays in floating point.
    decompression: how weights of what stays in floating point are turned back.
    """

    signed: bool
    symmetric: bool
    weight_bits: int
    kernels: bool
    decompression: Decompression


def quant_form(engine: str, isa: Isa) -> QuantForm:
    """The form for an engine: measurements are in docs/decisions.md.

    Raises:
        VlmEdgeError: no form is known for the engine.
    """
    if engine == "onnxruntime":
        return QuantForm(
            signed=isa in ("arm", "cuda"),
            symmetric=False,
            weight_bits=7 if isa == "x86" else 8,
            kernels=True,
            decompression="cast",
        )
    if engine == "openvino":
        return QuantForm(False, False, 7 if isa == "x86" else 8, False, "cast")
    if engine == "tensorrt":
        return QuantForm(True, True, 8, False, "dequantize")
    raise VlmEdgeError(f"quantize: no INT8 form is known for the engine {engine!r}")


def resolve_isa(isa: str, engine: str) -> Isa:
    """``auto`` as this host's instruction set (TensorRT: cuda); any other name as it is."""
    if isa == "auto":
        return "cuda" if engine == "tensorrt" else host_isa()
    if isa in ("x86-vnni", "x86", "arm", "cuda"):
        return isa  # type: ignore[return-value]
    raise VlmEdgeError(f"quantize: unknown instruction set {isa!r}", "give auto, x86-vnni, x86, arm or cuda")


def host_isa() -> Isa:
    """This host's: ``arm``, or ``x86-vnni`` or ``x86`` by its processor's flags."""
    if machine() == "arm":
        return "arm"
    return "x86-vnni" if kernels("x86")["VNNI"] else "x86"
