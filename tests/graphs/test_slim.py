"""A slim graph computes the same and says nothing about where it came from."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from proto_passes import slim

TEXT = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1, "ai.onnx.ml" : 3]>
g (float[n, 3] a, float[n, 3] b) => (float[n, 3] sum, float[n, 3] t0) {
  first = MatMul (a, a_long_weight_name)
  second = MatMul (b, another_long_weight_name)
  total = Add (first, second)
  nobody_reads_this = Relu (total)
  sum = Add (total, bias)
  t0 = com.microsoft.Gelu (total)
}"""


def model(same: bool = True) -> onnx.ModelProto:
    built = parser.parse_model(TEXT)
    weight = np.arange(9, dtype=np.float32).reshape(3, 3)
    constants = {
        "a_long_weight_name": weight,
        "another_long_weight_name": weight if same else weight + 1,
        "bias": np.float32([1, 2, 3]),
        "unused": np.zeros(100, np.float32),
    }
    built.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for index, node in enumerate(built.graph.node):
        node.name = f"/home/someone/model.py/node_{index}"
        node.doc_string = "File /home/someone/model.py, line 7"
        node.metadata_props.add(key="stack_trace", value="/home/someone/model.py" * 20)
    built.graph.value_info.append(helper.make_tensor_value_info("first", onnx.TensorProto.FLOAT, ["n", 3]))
    built.metadata_props.add(key="exported_from", value="/home/someone")
    onnx.checker.check_model(built)
    return built


def run(built: onnx.ModelProto, *, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    feed = {name: generator.normal(size=(2, 3)).astype(np.float32) for name in ("a", "b")}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(built.SerializeToString(), options).run(["sum", "t0"], feed)


def test_computes_the_same_under_the_same_outer_names() -> None:
    for same in (True, False):
        original = model(same)
        before = original.SerializeToString()
        small = slim(original)
        onnx.checker.check_model(small)
        assert original.SerializeToString() == before
        assert [value.name for value in small.graph.input] == ["a", "b"]
        assert [value.name for value in small.graph.output] == ["sum", "t0"]
        for wanted, got in zip(run(original), run(small), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_nothing_unused_doubled_or_told_stays() -> None:
    small = slim(model())
    content = small.SerializeToString()
    assert b"/home" not in content
    assert b"long_weight_name" not in content
    assert len(small.graph.node) == 5
    assert len(small.graph.initializer) == 2
    assert len(slim(model(same=False)).graph.initializer) == 3
    assert len(slim(model(), smallest_shared=1 << 20).graph.initializer) == 3
    assert sorted(entry.domain for entry in small.opset_import) == ["", "com.microsoft"]
    assert not small.graph.value_info


def test_slimming_twice_changes_nothing() -> None:
    once = slim(model())
    assert slim(once).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_a_graph_with_an_inner_graph_keeps_its_names() -> None:
    branch = """<ir_version: 10, opset_import: ["" : 20]>
    g (bool flag, float[n] x) => (float[n] y) {
      doubled = Add (x, x)
      y = If (flag) <
        then_branch = yes () => (float[n] kept) { kept = Identity (doubled) },
        else_branch = no () => (float[n] negated) { negated = Neg (doubled) }
      >
    }"""
    small = slim(parser.parse_model(branch))
    onnx.checker.check_model(small, full_check=True)
    session = ort.InferenceSession(small.SerializeToString())
    for flag, factor in ((True, 2), (False, -2)):
        feed = {"flag": np.array(flag), "x": np.float32([1, 2])}
        np.testing.assert_array_equal(session.run(None, feed)[0], np.float32([factor, 2 * factor]))


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 200))
def test_no_two_tensors_get_one_name(length: int) -> None:
    """A long chain whose ends are named as short names are."""
    names = ["0", *(f"a_name_{index}" for index in range(length)), "5"]
    nodes = [helper.make_node("Neg", [left], [right]) for left, right in itertools.pairwise(names)]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("0", "5")]
    chain = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    small = slim(chain)
    onnx.checker.check_model(small, full_check=True)
    outputs = [name for node in small.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs) == length + 1
