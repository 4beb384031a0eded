"""What is reported on integer convolutions, held to numpy and to onnxruntime's own run of the graphs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from proto_passes import (
    StaticGraph,
    SwitchedGraph,
    copied,
    layer_errors,
    lowered,
    quantized_layers,
    quantized_ops,
    static_graph,
    with_node_names,
)
from small_mobilevit import INTEGER_CONVOLUTIONS, pictures, small_mobilevit

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.quantization.calibration import Calibration
from vlm_edge.quantization.sensitivity import rank_layers
from vlm_edge.quantization.static import StaticSettings

Array = NDArray[Any]
FORM = lowering_of("onnxruntime", "x86")
HELD_OUT = pictures(2, batch=3, seed=1)
OUTPUTS = ("c2", "c3", "c4", "c5", "c6")
LEVELS = {name: f"{tensor}_quantized" for name, tensor in zip(INTEGER_CONVOLUTIONS, OUTPUTS, strict=True)}
"""What each convolution writes in the quantized graph; the float graph's tensor has the same name without the end."""


@cache
def static() -> StaticGraph:
    model = with_node_names(small_mobilevit())
    return static_graph(model, Calibration(pictures(16)), HELD_OUT, FORM, StaticSettings())


@cache
def integer() -> onnx.ModelProto:
    return lowered(static().quantized, "int8", FORM)


def tensors(model: onnx.ModelProto, names: list[str], feed: dict[str, Array]) -> dict[str, Array]:
    """Inner tensors of a run without any graph optimization."""
    shown = copied(model)
    known = {value.name for value in model.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, map(np.asarray, session.run(names, feed)), strict=True))


def sqnr_db(pairs: list[tuple[Array, Array]]) -> float:
    """Of (wanted, got) of several runs."""
    signal = sum(float(np.square(wanted.astype(np.float64)).sum()) for wanted, _ in pairs)
    noise = sum(float(np.square(wanted.astype(np.float64) - got).sum()) for wanted, got in pairs)
    return 10 * float(np.log10(signal / noise))


@cache
def rows() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in layer_errors(static().floating, integer(), HELD_OUT, 1)}


def kernel(name: str) -> tuple[onnx.NodeProto, list[Array]]:
    """A node of the quantized graph, and the values of its inputs (the data's is empty)."""
    constants = {each.name: numpy_helper.to_array(each) for each in integer().graph.initializer}
    node = next(each for each in integer().graph.node if each.name == name)
    return node, [constants.get(each, np.empty(0)) for each in node.input]


class TestRows:
    """One row for each convolution, as numpy takes it from the graphs' tensors."""

    def test_every_convolution_has_one(self) -> None:
        assert {name for name, row in rows().items() if row["operator"] == "QLinearConv"} == set(INTEGER_CONVOLUTIONS)
        assert list(rows())[:4] == ["stem", "project", "local", "enter"]  # the graph's order
        assert {row["operator"] for row in rows().values()} == {"Conv", "QLinearConv", "MatMulIntegerToFloat"}

    def test_weights(self) -> None:
        floating = {each.name: numpy_helper.to_array(each) for each in small_mobilevit().graph.initializer}
        for name in INTEGER_CONVOLUTIONS:
            _, values = kernel(name)
            got = values[3] * values[4].reshape(-1, 1, 1, 1)
            wanted = sqnr_db([(floating[f"{name}_w"], got)])
            assert rows()[name]["weight_sqnr_db"] == pytest.approx(wanted, abs=0.01)

    def test_outputs_are_what_the_levels_stand_for(self) -> None:
        for name in INTEGER_CONVOLUTIONS:
            _, values = kernel(name)
            pairs = []
            for feed in HELD_OUT:
                wanted = tensors(static().floating, [LEVELS[name].removesuffix("_quantized")], feed)
                levels = tensors(integer(), [LEVELS[name]], feed)[LEVELS[name]]
                assert levels.dtype == np.uint8
                pairs.append((*wanted.values(), (levels.astype(np.float64) - values[7]) * values[6]))
            assert rows()[name]["output_sqnr_db"] == pytest.approx(sqnr_db(pairs), abs=0.05)

    @pytest.mark.parametrize(("name", "source"), [("project", "s1"), ("fuse", "both"), ("local", "c2")])
    def test_inputs_are_rounded_by_the_kernel_s_own_scale(self, name: str, source: str) -> None:
        """The second of two convolutions in a row reads levels: what they round is the float graph's value."""
        node, values = kernel(name)
        model = static().floating if name == "local" else integer()
        assert node.input[0] == f"{source}_quantized"
        pairs = []
        for feed in HELD_OUT:
            x = tensors(model, [source], feed)[source].astype(np.float64)
            levels = np.clip(np.rint(x / values[1]) + values[2], 0, 255)
            pairs.append((x, (levels - values[2]) * values[1]))
        assert rows()[name]["input_sqnr_db"] == pytest.approx(sqnr_db(pairs), abs=0.05)

    def test_a_convolution_that_the_float_graph_lacks_has_none(self) -> None:
        renamed = copied(integer())
        for node in renamed.graph.node:
            node.name = f"other_{node.name}" if node.name == "fuse" else node.name
        outputs = [layer.output for layer in quantized_layers(static().floating, renamed)]
        assert "c6" not in outputs
        assert "c5" in outputs


class TestStrayPairs:
    def test_a_kernel_s_output_is_restored_on_purpose(self) -> None:
        operators = quantized_ops(integer())
        assert operators.integer["QLinearConv"] == len(INTEGER_CONVOLUTIONS)
        assert sum(node.op_type == "DequantizeLinear" for node in integer().graph.node) == 4
        assert operators.stray_pairs == 0

    def test_a_pair_beside_it_is_still_counted(self) -> None:
        model = copied(integer())
        (silu,) = (node for node in model.graph.node if node.output[0] == "s1")
        (quantize,) = (node for node in model.graph.node if node.input[0] == "s1")
        stray = onnx.helper.make_node("DequantizeLinear", [quantize.output[0], *quantize.input[1:]], ["rounded"])
        model.graph.node.extend([stray, onnx.helper.make_node("Neg", ["rounded"], ["negative"])])
        assert silu.op_type == "QuickGelu"
        assert quantized_ops(model).stray_pairs == 1


def ranking(*, outputs: bool) -> dict[str, float]:
    switched = SwitchedGraph(static().floating, static().quantized, 1, outputs=outputs)
    return {each.layer.node: each.sqnr_db for each in rank_layers(switched, HELD_OUT)}


class TestSensitivity:
    def test_what_a_kernel_writes_is_rounded_too(self) -> None:
        """Against the graph in which that convolution alone is quantized."""
        ranked = ranking(outputs=True)
        others = frozenset(ranked)
        for name in INTEGER_CONVOLUTIONS:
            alone = static_graph(
                static().floating,
                Calibration(pictures(16)),
                HELD_OUT,
                FORM,
                StaticSettings(left_out=others - {name}),
            )
            pairs = []
            for feed in HELD_OUT:
                wanted, got = (
                    tensors(model, ["image_embeds"], feed)["image_embeds"]
                    for model in (static().floating, alone.quantized)
                )
                pairs.append((wanted, got))
            assert ranked[name] == pytest.approx(sqnr_db(pairs), abs=0.2)

    def test_elsewhere_a_pair_is_the_reader_s(self) -> None:
        """Without such kernels a convolution's rounding is that of its data and its weight alone."""
        kernels, others = ranking(outputs=True), ranking(outputs=False)
        assert all(others[name] > kernels[name] for name in ("local", "enter", "leave"))
        assert {name for name in others if others[name] != kernels[name]} <= set(INTEGER_CONVOLUTIONS)
