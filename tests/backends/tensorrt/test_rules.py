"""TensorRT's rules: a graph that keeps them all, faults planted for every rule, and the compiler's answers."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser
from proto_passes import violations
from rtx import answer, nvidia
from tensorrt_network import before, constant, network, node_of, reading

from vlm_edge.backends.tensorrt.rules import RULES, UNSUPPORTED, require_tensorrt_rules
from vlm_edge.errors import VlmEdgeError


def unsupported(model: onnx.ModelProto) -> None:
    node_of(model, "relu").op_type = "BitwiseNot"


def onnxruntime_s(model: onnx.ModelProto) -> None:
    node_of(model, "relu").op_type, node_of(model, "relu").domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def hidden(model: onnx.ModelProto) -> None:
    """An unsupported operator in a branch of an If."""
    inner = helper.make_graph(
        [helper.make_node("Unique", ["x"], ["u"], name="inside")],
        "branch",
        [],
        [helper.make_tensor_value_info("u", TensorProto.FLOAT, ["n"])],
    )
    model.graph.input.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, [1]))
    before(model, "relu", helper.make_node("If", ["choice"], ["chosen"], then_branch=inner, else_branch=inner))


def two_outputs(model: onnx.ModelProto) -> None:
    node_of(model, "normed").output.append("means")


def plugin(model: onnx.ModelProto) -> None:
    before(model, "matrix_d", helper.make_node("Fancy", ["relu_d"], ["fancy"], domain="my.plugins"))
    model.opset_import.append(helper.make_opsetid("my.plugins", 1))


def cast_weight(model: onnx.ModelProto) -> None:
    before(model, "product", helper.make_node("Cast", ["matrix"], ["cast"], to=TensorProto.FLOAT))
    reading(model, "product", 1, "cast")


def unsigned(model: onnx.ModelProto) -> None:
    constant(model, "u8", np.uint8(0))
    for name in ("x_q", "x_d"):
        reading(model, name, 2, "u8")


def unsigned_by_default(model: onnx.ModelProto) -> None:
    for name in ("x_q", "x_d"):
        del node_of(model, name).input[2]


def sixteen_bits(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21
    constant(model, "i16", np.int16(0))
    for name in ("x_q", "x_d"):
        reading(model, name, 2, "i16")


def four_bit_activation(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21
    model.graph.initializer.append(helper.make_tensor("i4", TensorProto.INT4, [], [0]))
    for name in ("x_q", "x_d"):
        reading(model, name, 2, "i4")


def asymmetric(model: onnx.ModelProto) -> None:
    constant(model, "three", np.int8(3))
    for name in ("relu_q", "relu_d"):
        reading(model, name, 2, "three")


def asymmetric_weight(model: onnx.ModelProto) -> None:
    constant(model, "kernel_zero", np.array([0, 0, 1, 0, 0, 0, 0, 0], np.int8))


def uneven_zero_point(model: onnx.ModelProto) -> None:
    constant(model, "kernel_zero", np.zeros(1, np.int8))


def computed_zero_point(model: onnx.ModelProto) -> None:
    before(
        model,
        "x_q",
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["made"], to=TensorProto.INT8),
    )
    for name in ("x_q", "x_d"):
        reading(model, name, 2, "made")


def negative_scale(model: onnx.ModelProto) -> None:
    constant(model, "gemm_scale", np.array([0.1, -0.1] * 4, np.float32))


def zero_scale(model: onnx.ModelProto) -> None:
    constant(model, "x_scale", np.float32(0))


def no_number(model: onnx.ModelProto) -> None:
    constant(model, "x_scale", np.float32(np.nan))


def two_float_types(model: onnx.ModelProto) -> None:
    """A constant of another type, which the checker of ONNX would refuse, too."""
    constant(model, "width", np.float16(2.8))


PLANTED: list[tuple[str, str, Callable[[onnx.ModelProto], None]]] = [
    ("operator", "relu", unsupported),
    ("operator", "relu", onnxruntime_s),
    ("operator", "inside", hidden),
    ("operator", "normed", two_outputs),
    ("operator", "fancy", plugin),
    ("levels", "cast", cast_weight),
    ("type", "x_q", unsigned),
    ("type", "x_q", sixteen_bits),
    ("type", "x_q", four_bit_activation),
    ("zero-point", "relu_q", asymmetric),
    ("zero-point", "kernel_d", asymmetric_weight),
    ("zero-point", "kernel_d", uneven_zero_point),
    ("zero-point", "x_q", computed_zero_point),
    ("scale", "gemm_d", negative_scale),
    ("scale", "x_q", zero_scale),
    ("scale", "x_q", no_number),
    ("types", "scaled", two_float_types),
]


def test_a_graph_that_keeps_all_rules_has_no_violation_and_is_built() -> None:
    assert violations(network()) == []
    assert answer(network()).plan is not None


@pytest.mark.parametrize(("rule", "node", "plant"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_every_planted_fault_is_found_and_the_compiler_answers_as_the_rule_says(
    rule: str, node: str, plant: Callable[[onnx.ModelProto], None]
) -> None:
    model = network()
    plant(model)
    (violation, *_) = [each for each in violations(model) if (each.rule, each.node) == (rule, node)]
    assert violation.problem
    said = answer(model)
    assert violation.answer in said.words
    assert said.plan is None or plant is unsigned  # which is built as if it were signed: other numbers than ONNX's


def test_every_rule_has_a_fault_planted() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_what_is_unsigned_because_nothing_says_otherwise_is_read_as_signed() -> None:
    """Without zero point and type ONNX means 0 to 255: the compiler says nothing, and rounds to -128 to 127."""
    model = network()
    unsigned_by_default(model)
    assert ("type", "x_q") in [(each.rule, each.node) for each in violations(model)]
    assert answer(model).plan is not None


def test_the_list_of_operators_is_the_parser_s_own() -> None:
    trt = nvidia()
    log = trt.Logger()
    network_of_none = trt.Builder(log).create_network(1)
    parser_of = trt.OnnxParser(network_of_none, log)
    names = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert {name for name in names if not parser_of.supports_operator(name)} == UNSUPPORTED


ATTENTION = """
import sys
from rtx import answer
import onnx
model = onnx.load(sys.argv[1])
print("built" if answer(model).plan else "refused")
"""


def test_an_attention_operator_is_refused_since_the_compiler_dies_of_it(tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 23]>
        net (float16[1, 2, 4, 64] x) => (float16[1, 2, 4, 64] y) { y = Attention (x, x, x) }"""
    )
    assert [each.rule for each in violations(model)] == ["operator"]
    onnx.save(model, tmp_path / "attention.onnx")
    run = subprocess.run(
        [sys.executable, "-c", ATTENTION, tmp_path / "attention.onnx"],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert run.returncode == -signal.SIGSEGV


def test_types_that_contradict_each_other_are_a_violation() -> None:
    model = network()
    node_of(model, "relu").domain = "nobody.knows"
    assert {("operator", "relu"), ("types", "")} <= {(each.rule, each.node) for each in violations(model)}


def test_a_file_is_refused_with_the_node_its_words_and_the_next_step(tmp_path: Path) -> None:
    model = network()
    path = tmp_path / "graph.onnx"
    onnx.save(model, path, save_as_external_data=True, location="graph.data", size_threshold=0)
    require_tensorrt_rules(path)
    asymmetric(model)
    zero_scale(model)
    onnx.save(model, path, save_as_external_data=True, location="other.data", size_threshold=0)
    with pytest.raises(VlmEdgeError, match=r"graph\.onnx.*scale: x_q: .* 0 \(and \d+ more\).*must all be p") as error:
        require_tensorrt_rules(path)
    assert error.value.hint == RULES["scale"]
