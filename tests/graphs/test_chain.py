"""A graph run as a chain of sessions gives the whole graph's values, also from the middle on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlm_edge.graphs.chain import SAMPLED, GraphChain, feeds_of, sample_of
from vlm_edge.graphs.files import GraphSession

WIDTH, BLOCKS = 6, 5


def residual_blocks(seed: int = 0, *, nested: bool = False) -> ir.Model:
    """x -> five blocks of x + (x @ w) * mask, with an output out of the second one's middle, and y."""
    generator = np.random.default_rng(seed)
    nodes, weights, before = [], [], "x"
    nodes.append(helper.make_node("Sqrt", ["mask"], ["root"], name="root"))
    for block in range(BLOCKS):
        weight = generator.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 3
        weights.append(numpy_helper.from_array(weight, f"w{block}"))
        nodes.append(helper.make_node("MatMul", [before, f"w{block}"], [f"product{block}"], name=f"matmul{block}"))
        nodes.append(helper.make_node("Mul", [f"product{block}", "root"], [f"masked{block}"], name=f"mul{block}"))
        nodes.append(helper.make_node("Add", [before, f"masked{block}"], [f"block{block}"], name=f"add{block}"))
        before = f"block{block}"
    if nested:
        branch = helper.make_graph(
            [helper.make_node("Neg", [before], ["negative"])],
            "then",
            [],
            [helper.make_tensor_value_info("negative", TensorProto.FLOAT, None)],
        )
        other = helper.make_graph(
            [helper.make_node("Abs", [before], ["positive"])],
            "else",
            [],
            [helper.make_tensor_value_info("positive", TensorProto.FLOAT, None)],
        )
        nodes.append(helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=other))
    else:
        nodes.append(helper.make_node("Tanh", [before], ["y"], name="tanh"))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, WIDTH]) for name in ("x", "mask")]
    inputs += [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])] if nested else []
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, WIDTH]) for name in ("product1", "y")]
    graph = helper.make_graph(nodes, "blocks", inputs, outputs, weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.fixture
def feed() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {"x": generator.normal(size=(2, WIDTH)).astype(np.float32), "mask": np.ones((2, WIDTH), np.float32) * 2}


PRODUCTS = [f"product{block}" for block in range(BLOCKS)]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 12])
def test_every_number_of_parts_gives_the_whole_graphs_outputs(feed: dict[str, np.ndarray], parts: int) -> None:
    model = residual_blocks()
    expected = GraphSession(model).run(["product1", "y"], feed)
    chain = GraphChain(model, PRODUCTS, parts, 1)
    found = chain.run(feed)
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-6)
    assert len(chain) == min(parts, BLOCKS)


def test_a_run_from_the_middle_takes_what_lies_before_from_the_run_that_it_is_given(
    feed: dict[str, np.ndarray],
) -> None:
    model = residual_blocks()
    model.graph.inputs.append(weight := model.graph.initializers.pop("w3"))
    numbers, weight.const_value = weight.const_value, None
    assert numbers is not None
    chain = GraphChain(model, PRODUCTS, BLOCKS, 1)
    known = chain.run(feed | {"w3": numbers.numpy()})
    start = chain.first_reader(["w3"])
    assert 0 < start < len(chain)
    other = feed | {"w3": numbers.numpy() * 2}
    expected = chain.run(other)
    spoilt = other | {"x": np.full((2, WIDTH), np.nan, np.float32)}  # only parts before the start read it
    found = chain.run(spoilt, known, start)
    np.testing.assert_array_equal(found["y"], expected["y"])
    np.testing.assert_array_equal(found["product1"], known["product1"])
    assert np.abs(found["y"] - known["y"]).max() > 1e-3


def test_a_graph_with_control_flow_is_one_part(feed: dict[str, np.ndarray]) -> None:
    model = residual_blocks(nested=True)
    chain = GraphChain(model, PRODUCTS, 4, 1)
    assert len(chain) == 1
    values = feed | {"flag": np.array(True)}
    np.testing.assert_allclose(chain.run(values)["y"], GraphSession(model).run(["y"], values)["y"], atol=1e-6)


def test_weights_stay_in_their_file(tmp_path: Path, feed: dict[str, np.ndarray]) -> None:
    model = residual_blocks()
    expected = GraphSession(model).run(["y"], feed)["y"]
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)
    chain = GraphChain(ir.load(tmp_path / "model.onnx"), PRODUCTS, 3, 1)
    np.testing.assert_allclose(chain.run(feed)["y"], expected, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 3, BLOCKS])
def test_inner_values_come_part_by_part_in_place_of_the_outputs(feed: dict[str, np.ndarray], parts: int) -> None:
    model, wanted = residual_blocks(), ["masked1", "product3"]
    expected = GraphSession(model, wanted).run(wanted, feed)
    chain = GraphChain(model, PRODUCTS, parts, 1, wanted)
    made = list(chain.run_parts(feed))
    first, second = (part for name in wanted for part, values in enumerate(made) if name in values)
    assert (second > first) == (parts > 1)
    found = {name: value for values in made for name, value in values.items()}
    assert "y" not in found
    for name in wanted:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    assert [value.name for value in model.graph.outputs] == ["product1", "y"]


def test_a_sample_holds_some_of_every_kind_and_runs_alone_as_in_the_whole(feed: dict[str, np.ndarray]) -> None:
    model = residual_blocks()
    part = sample_of(model, [PRODUCTS])
    assert part is not None
    assert [node.op_type for node in part.graph].count("MatMul") == SAMPLED
    (own,) = feeds_of(part, model, [feed])
    assert own.keys() == {value.name for value in part.graph.inputs}
    names = [str(value.name) for value in part.graph.outputs]
    expected = GraphSession(model, names).run(names, feed)
    for name, values in GraphSession(part).run(names, own).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)


@pytest.mark.parametrize(
    ("groups", "nested"),
    [([PRODUCTS, ["root"]], False), ([["y"], ["product0"]], False), ([PRODUCTS], True), ([], False)],
)
def test_what_is_spread_over_the_graph_or_has_control_flow_has_no_sample(groups: list[list[str]], nested: bool) -> None:
    """``root`` is made before the first block: two blocks and it are two of five, but ``y`` comes behind the last."""
    model = residual_blocks(nested=nested)
    assert (sample_of(model, groups) is None) == (groups != [PRODUCTS, ["root"]])
