"""Read from a TensorRT-RTX plan which products it computes in integers.

A plan holds its program as text: tensors with their types, and operators with their inputs and the ONNX nodes that they
were made of. NVIDIA documents none of that: it was found in plans of 1.7.1, and tests hold it against graphs whose
answer is known.
"""

from __future__ import annotations

import re

_PRODUCT = re.compile(rb"\n +(?:corrltn|fully_connected)=\{ (.*?) layers=\"([^\"]*)\"", re.DOTALL)
_TENSOR = re.compile(rb"tensor=\{ [^\n]*?name=\"([^\"]*)\"[^\n]*? type=(\w+) \}")
_INPUTS = re.compile(rb" input=\{([^}]*)\}")


def in_float(plan: bytes) -> set[str]:
    """The ONNX nodes whose convolution or matrix product reads a factor that is no 8-bit integer."""
    types = {match[1]: match[2] for match in _TENSOR.finditer(plan)}
    found: set[str] = set()
    for body, layers in _PRODUCT.findall(plan):
        inputs = _INPUTS.search(b" " + body)
        factors = re.findall(rb"\"([^\"]*)\"", inputs[1])[:2] if inputs else []
        if any(types.get(factor) != b"int8" for factor in factors):
            found |= {name.decode() for name in re.findall(rb"ONNX Layer: ([^\]]*)\]", layers)}
    return found
