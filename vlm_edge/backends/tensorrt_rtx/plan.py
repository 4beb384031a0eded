"""Read from a TensorRT-RTX plan its kernels: what each computes, and which products it computes in integers.

A plan holds its program as text: tensors with their types, and operators with their inputs and the ONNX nodes that they
were made of. NVIDIA documents none of that: it was found in plans of 1.7.1, and tests hold it against graphs whose
answer is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_KERNEL = re.compile(
    rb"\n +(corrltn|fully_connected|function)=\{ ((?:(?!\n +(?:corrltn|fully_connected|function)=\{).)*?)"
    rb" layers=\"([^\"]*)\"",
    re.DOTALL,
)
_TENSOR = re.compile(rb"tensor=\{ [^\n]*?name=\"([^\"]*)\"[^\n]*? type=(\w+) \}")
_INPUTS = re.compile(rb" input=\{([^}]*)\}")
_NAME = re.compile(rb"name=\"?(?:__myl_)?([^\" ]*)")
_LAYER = re.compile(rb"ONNX Layer: ([^\]]*)\]")
_STEP = re.compile("[A-Z][a-z]*")
_MOVES = frozenset({"Cast", "Conc", "Copy", "Repl", "Resh", "Slic", "Tran"})
_ROUNDS = frozenset({"Cast", "Max", "Min", "Mul", "Roun"})
_TYPES = {b"corrltn": "Convolution", b"fully_connected": "MatMul", b"function": "Kernel"}


@dataclass(frozen=True)
class PlanKernel:
    """One kernel. ``layers`` are the ONNX nodes fused into it; ``steps`` are what a generated kernel does in turn.

    Of a product, ``integer`` says that both factors are 8-bit integers, ``weighted`` that one is a constant.
    """

    type: str
    label: str
    layers: tuple[str, ...]
    integer: bool = False
    weighted: bool = False
    ms: float = 0.0

    @property
    def steps(self) -> frozenset[str]:
        return frozenset(_STEP.findall(self.label)) if self.type == "Kernel" else frozenset()

    @property
    def name(self) -> str:
        """The first ONNX node, or the kernel's own name where it has none."""
        return self.layers[0] if self.layers else self.label

    @property
    def primitive(self) -> str:
        return self.label if self.type == "Kernel" else "int8" if self.integer else "float"

    @property
    def kind(self) -> str:
        if self.type != "Kernel":
            return "integer" if self.integer else "float product"
        if self.steps <= _MOVES:
            return "layout"
        return "activation Q/DQ" if "Roun" in self.steps and self.steps <= _ROUNDS | _MOVES else "other float"


def kernels_of(plan: bytes) -> Iterator[PlanKernel]:
    """A plan's products and generated kernels, in order."""
    types = {match[1]: match[2] for match in _TENSOR.finditer(plan)}
    for kind, body, layers in _KERNEL.findall(plan):
        name, inputs = _NAME.search(body), _INPUTS.search(b" " + body)
        factors = re.findall(rb"\"([^\"]*)\"", inputs[1])[:2] if inputs else []
        yield PlanKernel(
            _TYPES[kind],
            name[1].decode() if name else "",
            tuple(layer.decode() for layer in _LAYER.findall(layers)),
            integer=bool(factors) and all(types.get(factor) == b"int8" for factor in factors),
            weighted=any(b"const" in factor for factor in factors),
        )


def in_float(plan: bytes) -> set[str]:
    """The ONNX nodes whose convolution or matrix product reads a factor that is no 8-bit integer."""
    floats = (kernel for kernel in kernels_of(plan) if kernel.kind == "float product")
    return {layer for kernel in floats for layer in kernel.layers}
