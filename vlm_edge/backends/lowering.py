"""Lowering: where an engine's Q/DQ pairs stand, and which passes write a quantized graph in the engine's form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vlm_edge.backends import backend, resolve
from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import kernels, machine

if TYPE_CHECKING:
    import onnx_ir as ir

    from vlm_edge.quantization.calibration import Feeds

STATIC = ("int8", "int8-smooth")
"""Schemes whose graphs have Q/DQ pairs before they are lowered."""
LARGEST_BLOCK_OF_4_BITS = 32
"""Most input channels that share a scale: 64 are 1.1 times as fast, but 0.9 dB noisier, and 128 are half as fast on
OpenVINO."""


@dataclass(frozen=True)
class Lowering(ABC):
    """One engine's way, on one instruction set.

    signed: activations are s8, else u8.
    weight_bits: 7 where the multiply-add of u8 and s8 saturates at 16 bits.
    """

    signed: bool = False
    weight_bits: int = 8

    symmetric: ClassVar[bool] = False
    """Activation ranges have the real 0 in their middle."""
    rounds_outputs: ClassVar[bool] = False
    """A convolution becomes a kernel that rounds what it writes."""

    @classmethod
    @abstractmethod
    def on(cls, isa: str) -> Lowering:
        """For an instruction set: measurements are in docs/decisions.md."""

    def place(self, model: ir.Model, held_out: Feeds, left_out: frozenset[str]) -> ir.Model:  # noqa: ARG002
        """``model``, float32 with every node named, with Q/DQ pairs whose ranges are to be set.

        Args:
            held_out: at least one run, for an engine that asks a calibration tool for the places.
            left_out: names of nodes that stay float.
        """
        from vlm_edge.graphs.passes.place_pairs import PlaceConvolutions, PlaceLinears

        PlaceLinears(self.weight_bits, left_out)(model)
        PlaceConvolutions(self.weight_bits, self.rounds_outputs, left_out)(model)
        return model

    @abstractmethod
    def passes(self, model: ir.Model, scheme: str, left_out: frozenset[str]) -> Iterator[ir.passes.InPlacePass]:
        """Passes that write a graph in ``scheme``; ``model`` has its Q/DQ pairs where the scheme is :data:`STATIC`."""

    def check(self, path: Path) -> None:  # noqa: B027 - most engines have no rules of their own
        """Nothing, if the engine takes the graph.

        Raises:
            VlmEdgeError: it breaks a rule of the engine's.
        """

    def lower(self, model: ir.Model, scheme: str, left_out: frozenset[str] = frozenset()) -> ir.Model:
        """A lowered copy of ``model``, which shares its constants.

        One after another and not as onnx_ir's Sequential, which hides what a pass has to say in an error of its own.
        """
        from vlm_edge.graphs.passes.slim import ClearNotes

        lowered = model.clone()
        for each in self.passes(lowered, scheme, left_out):
            each(lowered)
        ClearNotes()(lowered)
        return lowered


def lowering_of(engine: str, isa: str) -> Lowering:
    """The engine's lowering on an instruction set.

    Raises:
        VlmEdgeError: the engine is unknown, or nothing is quantized for it.
    """
    spec = backend(engine)
    if not spec.lowering:
        raise VlmEdgeError(f"quantize: no INT8 form is known for the engine {engine!r}", "leave quantize out")
    lowering: Lowering = resolve(spec.lowering).on(isa)
    return lowering


def resolve_isa(isa: str, engine: str) -> str:
    """``auto`` as this host's instruction set, or the engine's first where it has not that one; any other as it is.

    Raises:
        VlmEdgeError: the engine has no such instruction set.
    """
    isas = backend(engine).isas
    if isa == "auto":
        return host_isa() if host_isa() in isas else isas[0]
    if isa not in isas:
        raise VlmEdgeError(
            f"quantize: {engine} has no instruction set {isa!r}", f"give auto or one of {', '.join(isas)}"
        )
    return isa


def host_isa() -> str:
    """This host's: ``arm``, or ``x86-vnni`` or ``x86`` by its processor's flags."""
    if machine() == "arm":
        return "arm"
    return "x86-vnni" if kernels("x86")["VNNI"] else "x86"
