"""TensorRT's rules for explicit quantization, checked on the ONNX graph before TensorRT sees it.

Every rule names the part of NVIDIA's documentation that it is taken from: the TensorRT documentation (10.11 to 11.0),
"Working with Quantized Types" and "Explicit Quantization"; the C++ API's IQuantizeLayer and IDequantizeLayer; and the
ONNX parser (onnx-tensorrt), of which the operator list (docs/operators.md, TensorRT 10.15) says what is supported, and
the importer of QuantizeLinear and DequantizeLinear (onnxOpImporters.cpp, QuantDequantLinearHelper) what is asserted.

Some rules are refusals of the parser or the builder; those of the "Q/DQ Layer-Placement Recommendations" cost speed or
accuracy. Both are errors here, since the tool writes these graphs itself. A graph that keeps them all has not been seen
by TensorRT yet: whether it builds and is fast is measured on the device alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from vlm_edge.backends.tensorrt.operator_rules import (
    OPSETS,
    Fault,
    element_types,
    operator_faults,
    quantizer_faults,
    type_faults,
)
from vlm_edge.backends.tensorrt.placement_rules import placement_faults
from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs.files import load_graph


@dataclass(frozen=True)
class Rule:
    """``section``: where NVIDIA says it. ``next_step``: what to do about a violation."""

    section: str
    next_step: str


_PLACEMENT = "Explicit Quantization: Q/DQ Layer-Placement Recommendations"
_ONNX = "Explicit Quantization: ONNX Support"
_PARSER = "onnx-tensorrt, QuantDequantLinearHelper"
_OPERATORS = "onnx-tensorrt, docs/operators.md"
_QUANTIZE_AGAIN = "quantize the component again for a target with `engine: tensorrt`"

RULES: dict[str, Rule] = {
    "opset": Rule(_OPERATORS, f"export with an operator set of {OPSETS.start} to {OPSETS.stop - 1}"),
    "operator": Rule(f"{_ONNX}; {_OPERATORS}", "start from the exported graph, not from another engine's"),
    "plugin": Rule("Explicit Quantization: Q/DQ Interaction with Plugins", "leave the layers around it float"),
    "levels": Rule(f"{_OPERATORS}: quantized types", "let DequantizeLinear read it, " + _QUANTIZE_AGAIN),
    "type": Rule("Working with Quantized Types: supported data types", _QUANTIZE_AGAIN),
    "zero-point": Rule(f"Working with Quantized Types: symmetric quantization; {_PARSER}", _QUANTIZE_AGAIN),
    "scale-constant": Rule("IQuantizeLayer: scale is a build-time constant", "make the scale an initializer"),
    "scale-value": Rule(f"IQuantizeLayer: scales are strictly positive; {_PARSER}", "calibrate with more samples"),
    "scale-type": Rule("Quantize operator: scale and data are of one type (T1)", "cast the scale, or the data"),
    "granularity": Rule("Quantization Granularities: activations by tensor, weights by channel", _QUANTIZE_AGAIN),
    "axis": Rule(f"{_ONNX}: the K axis; IDequantizeLayer", "quantize the weight by its output channels"),
    "block": Rule("Quantization Schemes: INT4 needs scales by block, of 64 or 128", _QUANTIZE_AGAIN),
    "pair": Rule("Explicit Quantization: TensorRT Processing of Q/DQ Networks", "put DequantizeLinear after it"),
    "inputs": Rule(f"{_PLACEMENT}: quantize all inputs of weighted operations", "quantize both factors, or none"),
    "attention": Rule("Fused Attention", "quantize both of the attention's products, or none"),
    "output": Rule(f"{_PLACEMENT}: do not quantize the outputs of weighted operations", "take the pair out"),
    "residual": Rule(f"{_PLACEMENT}: quantize the residual input in skip connections", "quantize the skip branch"),
    "bias": Rule(f"{_PLACEMENT}: weights and activations are quantized; {_OPERATORS}", "leave the bias float"),
    "stray": Rule(f"{_PLACEMENT}: be conservative when adding Q/DQ nodes", "take the pair out"),
    "types": Rule("Precision Control: Strong Typing", "put a Cast before the operator"),
}


@dataclass(frozen=True)
class Violation:
    """One broken rule at ``node`` (its name, or its first output where it has none), in what it does to ``tensor``."""

    rule: str
    node: str
    tensor: str
    problem: str

    @property
    def section(self) -> str:
        return RULES[self.rule].section

    @property
    def next_step(self) -> str:
        return RULES[self.rule].next_step


def violations(model: ir.Model) -> list[Violation]:
    """Every violation in a graph: of single operators first, then of placement. Inner graphs hold no pairs of ours,
    so they are looked through for unknown operators only."""
    graph = model.graph
    faults = [*operator_faults(model)]
    try:
        types = element_types(model)
    except onnx.shape_inference.InferenceError as error:
        types = {}
        faults.append(Fault("types", "", "", f"ONNX can't infer its types: {error}"))
    faults += [*quantizer_faults(graph, types), *type_faults(graph, types), *placement_faults(graph)]
    return [Violation(*fault) for fault in faults]


def require_tensorrt_rules(path: Path) -> None:
    """Check a graph file.

    Raises:
        VlmEdgeError: a rule is violated.
    """
    found = violations(load_graph(path))
    if not found:
        return
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise VlmEdgeError(
        f"{path}: TensorRT would not take it: {first.rule}: {first.node or 'the graph'}: {first.problem}{more}; "
        f"see {first.section}",
        first.next_step,
    )
