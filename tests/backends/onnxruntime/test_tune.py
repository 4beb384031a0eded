"""The search for the fastest forms, with engines whose runs take a known time on a clock that only they move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from proto_passes import graph_of, integer_layers, quantize_graph

from vlm_edge.backends import compiling
from vlm_edge.backends.compiling import race
from vlm_edge.backends.onnxruntime import tune
from vlm_edge.backends.onnxruntime.lowering import OnnxRuntimeLowering
from vlm_edge.backends.onnxruntime.tune import REVERTED, REVERTED_BY_CLOCK, Tuner, alike
from vlm_edge.graphs.shapes import ShapeSession

FORM = OnnxRuntimeLowering(weight_bits=7)
FEED = {"x": np.random.default_rng(0).normal(size=(1, 16, 8, 8)).astype(np.float32)}
STATIC, DYNAMIC, FLOAT = "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMul"
OPERATORS = {STATIC: "static", "QLinearConv": "static", DYNAMIC: "dynamic", FLOAT: "float", "Conv": "float"}


def network() -> onnx.ModelProto:
    """A convolution, two linear layers of one shape, a wide one, and one of next to no work; quantized."""
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        net (float[n, 16, 8, 8] x) => (float[n, 8, 8, 1] y) {
          [conv] c = Conv <pads = [1, 1, 1, 1]> (x, conv_w)
          r = Relu (c)
          t = Transpose <perm = [0, 2, 3, 1]> (r)
          [first] a = MatMul (t, first_w)
          s = Relu (a)
          [second] b = MatMul (s, second_w)
          u = Relu (b)
          [wide] d = MatMul (u, wide_w)
          v = Relu (d)
          [small] y = MatMul (v, small_w)
        }"""
    )
    shapes = {"conv": (32, 16, 3, 3), "first": (32, 32), "second": (32, 32), "wide": (32, 256), "small": (256, 1)}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        value = generator.normal(size=shape).astype(np.float32) / 8
        model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_w"))
    return quantize_graph(model, "int8", [FEED], FORM)


MODEL = network()
LAYERS = ("conv", "first", "second", "wide", "small")
Costs = Mapping[str, Mapping[str, float]]


@dataclass
class Clock:
    """Stands in for the module ``time``: engines move it, computing or waiting."""

    now: float = 0.0
    waited: float = 0.0

    def process_time(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now + self.waited

    monotonic = perf_counter


@dataclass
class TimedEngine:
    """Takes what its layers cost in the forms that its graph has them in."""

    clock: Clock
    seconds: float
    name: str = "timed"
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)

    def infer(self, feed: Any) -> dict[str, Any]:
        self.clock.now += self.seconds
        return {}


class ScriptedEngine(TimedEngine):
    """Takes as long as ``seconds_of`` says of each run, the first of which is number 1."""

    def __init__(self, clock: Clock, seconds_of: Callable[[int], float]) -> None:
        super().__init__(clock, 0)
        self.seconds_of = seconds_of
        self.runs = 0

    def infer(self, feed: Any) -> dict[str, Any]:
        self.runs += 1
        self.clock.now += self.seconds_of(self.runs)
        return {}


def forms_of(model: ir.Model) -> dict[str, str]:
    return {str(node.name): OPERATORS[node.op_type] for node in model.graph if node.name in LAYERS}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(compiling, "time", clock)
    monkeypatch.setattr(tune, "time", clock)
    return clock


def tuned(
    clock: Clock,
    costs: Costs,
    seconds: float = 1e6,
    model: onnx.ModelProto = MODEL,
    threaded: Costs | None = None,
) -> tuple[Tuner, dict[str, Any], list[dict[str, str]]]:
    """The tuner after its search, its facts, and the graphs that it raced on one thread."""
    loaded: list[dict[str, str]] = []

    def load(candidate: ir.Model) -> TimedEngine:
        loaded.append(forms_of(candidate))
        return TimedEngine(clock, 1e-3 + sum(costs[name][form] for name, form in loaded[-1].items()))

    def load_threaded(candidate: ir.Model) -> TimedEngine:
        assert threaded is not None
        return TimedEngine(clock, sum(threaded[name][form] for name, form in forms_of(candidate).items()))

    graph = graph_of(model)
    layers = integer_layers(model)
    shapes = ShapeSession(graph, [layer.output for layer in layers]).run(FEED)
    threads = load_threaded if threaded else None
    tuner = Tuner(layers, alike(layers, shapes), graph, [FEED], load, seconds, threads)
    return tuner, tuner.run(), loaded


def costs(**fastest: str) -> Costs:
    """1 ms for a layer's fastest form, 3 ms for the others."""
    return {
        name: {form: 0.001 if form == best else 0.003 for form in ("static", "dynamic", "float")}
        for name, best in fastest.items()
    }


class TestSearch:
    @settings(max_examples=30)
    @given(
        conv=st.sampled_from(["static", "float"]),
        pair=st.sampled_from(["static", "dynamic", "float"]),
        wide=st.sampled_from(["static", "dynamic", "float"]),
    )
    def test_every_shape_gets_its_fastest_form(self, conv: str, pair: str, wide: str) -> None:
        clock = Clock()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiling, "time", clock)
            patch.setattr(tune, "time", clock)
            wanted = {"conv": conv, "first": pair, "second": pair, "wide": wide}
            table = costs(**wanted) | {"small": dict.fromkeys(("static", "dynamic", "float"), 0.0)}
            tuner, facts, _ = tuned(clock, table)
        assert {name: tuner.forms[name] for name in wanted} == wanted
        assert facts["layers"] == dict(sorted(Counter(tuner.forms.values()).items()))
        slowest = 1e-3 + sum(table[name]["static"] for name in LAYERS)
        floating = 1e-3 + sum(table[name]["float"] for name in LAYERS)
        chosen = 1e-3 + sum(table[name][tuner.forms[name]] for name in LAYERS)
        assert facts["faster_than_untuned"] == pytest.approx(slowest / chosen, abs=2e-3)
        assert facts["faster_than_float"] == pytest.approx(floating / chosen, abs=2e-3)

    def test_layers_of_one_shape_are_tried_together(self, clock: Clock) -> None:
        """``first`` gains more by another form than ``second`` loses, so both get it; no race parts them."""
        table = costs(conv="static", first="dynamic", second="static", wide="static", small="static")
        table = {**table, "first": {"static": 0.009, "dynamic": 0.001, "float": 0.009}}
        tuner, _, loaded = tuned(clock, table)
        assert tuner.forms["first"] == tuner.forms["second"] == "dynamic"
        assert tuner.forms["wide"] == "static"
        assert all(forms["first"] == forms["second"] for forms in loaded)

    def test_layers_of_little_work_are_not_tried_by_themselves(self, clock: Clock) -> None:
        table = costs(conv="static", first="static", second="static", wide="static", small="float")
        tuner, facts, loaded = tuned(clock, table)
        assert tuner.forms["small"] == "static"
        assert {**dict.fromkeys(LAYERS, "static"), "small": "float"} not in loaded
        assert facts["shapes_not_tried"] == 0

    def test_the_most_work_comes_first(self, clock: Clock) -> None:
        """Multiply-adds: ``wide`` 64 x 256 x 32, ``first`` and ``second`` together 2 x 64 x 32 x 32."""
        _, _, loaded = tuned(clock, costs(**dict.fromkeys(LAYERS, "static")))
        changed = [{name for name in LAYERS if forms[name] != "static"} for forms in loaded]
        assert changed.index({"wide"}) < changed.index({"first", "second"})

    def test_a_gain_within_the_margin_is_not_taken(self, clock: Clock) -> None:
        table = {name: {"static": 0.002, "dynamic": 0.00199, "float": 0.002} for name in LAYERS}
        tuner, facts, _ = tuned(clock, table)
        assert set(tuner.forms.values()) == {"static"}
        assert facts["faster_than_untuned"] == 1.0


class TestFloat:
    def test_where_float_is_fastest_everywhere_it_is_taken(self, clock: Clock) -> None:
        tuner, facts, _ = tuned(clock, costs(**dict.fromkeys(LAYERS, "float")))
        assert set(tuner.forms.values()) == {"float"}
        assert facts["reverted"] == REVERTED
        assert facts["faster_than_float"] == 1.0
        assert facts["layers"] == {"float": 5}
        assert facts["faster_than_untuned"] == pytest.approx(16 / 6, abs=1e-3)

    def test_float_that_is_faster_by_less_than_the_margin_is_taken_all_the_same(self, clock: Clock) -> None:
        """Integers have to be worth what they cost in accuracy."""
        table = {name: {"static": 0.002, "dynamic": 0.003, "float": 0.00199} for name in LAYERS}
        tuner, facts, _ = tuned(clock, table)
        assert set(tuner.forms.values()) == {"float"}
        assert facts["reverted"] == REVERTED
        assert facts["faster_than_untuned"] == pytest.approx(11 / 10.95, abs=1e-3)


class TestByTheClock:
    """With several threads: integers win on one, and take what ``seconds`` says on all of them; float takes 1 ms."""

    def threaded(self, seconds: float) -> Costs:
        return {name: {"static": seconds, "dynamic": seconds, "float": 0.001} for name in LAYERS}

    @pytest.mark.parametrize("seconds", [0.0011, 0.002])
    def test_where_float_is_faster_by_the_clock_it_is_taken(self, clock: Clock, seconds: float) -> None:
        costly = costs(**dict.fromkeys(LAYERS, "static"))
        tuner, facts, _ = tuned(clock, costly, threaded=self.threaded(seconds))
        assert set(tuner.forms.values()) == {"float"}
        assert facts["reverted"] == REVERTED_BY_CLOCK
        assert facts["faster_than_float"] == 1.0
        assert facts["layers"] == {"float": 5}

    @pytest.mark.parametrize("seconds", [0.00104, 0.0005])
    def test_else_integers_stay(self, clock: Clock, seconds: float) -> None:
        costly = costs(**dict.fromkeys(LAYERS, "static"))
        tuner, facts, _ = tuned(clock, costly, threaded=self.threaded(seconds))
        assert set(tuner.forms.values()) == {"static"}
        assert "reverted" not in facts
        assert facts["faster_than_float_by_clock"] == pytest.approx(0.001 / seconds, abs=1e-3)

    def test_one_thread_is_not_raced_again(self, clock: Clock) -> None:
        _, facts, _ = tuned(clock, costs(**dict.fromkeys(LAYERS, "static")))
        assert "faster_than_float_by_clock" not in facts
        assert "uncalibrated_layers" not in facts


class TestTimeLimit:
    def test_at_its_end_the_starts_were_tried_and_no_shape(self, clock: Clock) -> None:
        table = costs(conv="float", first="dynamic", second="dynamic", wide="static", small="dynamic")
        tuner, facts, _ = tuned(clock, table, seconds=0)
        assert tuner.forms == {**dict.fromkeys(LAYERS, "dynamic"), "conv": "float"}
        assert facts["shapes_not_tried"] == 3
        assert facts["uncalibrated_layers"] == 4  # calibrated, and now run by the range of each batch
        assert "depend on the batch" in facts["uncalibrated"]
        assert facts["races"] == 3  # float convolutions, all dynamic, all float: no other race against float at the end

    def test_in_between_it_stops_after_the_shape_that_it_is_at(self, clock: Clock) -> None:
        table = costs(conv="float", first="dynamic", second="dynamic", wide="static", small="dynamic")
        _, whole, _ = tuned(clock, table)
        spent = clock.now
        _, part, _ = tuned(clock, table, seconds=spent / 2)
        assert whole["shapes_not_tried"] == 0
        assert 0 < part["shapes_not_tried"] < 3
        assert part["races"] < whole["races"]


class TestRace:
    def test_the_lower_quartile_of_what_each_took(self, clock: Clock) -> None:
        """One run in five is disturbed: it doesn't show."""
        disturbed = ScriptedEngine(clock, lambda run: 0.5 if run % 5 == 0 else 0.001)
        assert race([TimedEngine(clock, 0.002), disturbed], [FEED]) == pytest.approx([0.002, 0.001])

    def test_all_feeds_count(self, clock: Clock) -> None:
        assert race([TimedEngine(clock, 0.002)], [FEED, FEED, FEED]) == pytest.approx([0.006])

    def test_warm_up_does_not(self, clock: Clock) -> None:
        engine = ScriptedEngine(clock, lambda run: 1.002 if run <= 2 else 0.002)
        assert race([engine], [FEED]) == pytest.approx([0.002])
        assert engine.runs >= compiling.ROUNDS

    def test_by_the_clock_the_shortest_counts(self, clock: Clock) -> None:
        engine = ScriptedEngine(clock, lambda run: 0.001 if run == 9 else 0.002)
        assert race([engine], [FEED], by_clock=True) == pytest.approx([0.001])

    def test_a_slow_engine_is_not_run_for_ever(self, clock: Clock) -> None:
        engines = [TimedEngine(clock, 5.0), TimedEngine(clock, 5.1)]
        assert race(engines, [FEED]) == pytest.approx([5.0, 5.1])
        assert clock.now == pytest.approx(4 * 10.1)  # one round of warm-up

    @pytest.mark.parametrize(("slower", "rounds"), [(1.6, 3), (1.2, 4), (1.04, 6)])
    def test_it_is_over_when_one_is_far_enough_behind(self, clock: Clock, slower: float, rounds: int) -> None:
        engines = [TimedEngine(clock, 0.4), TimedEngine(clock, 0.4 * slower)]
        assert race(engines, [FEED]) == pytest.approx([0.4, 0.4 * slower])
        assert clock.now == pytest.approx(rounds * 0.4 * (1 + slower))

    def test_waiting_counts_by_the_clock_alone(self, clock: Clock) -> None:
        class Waiting(TimedEngine):
            def infer(self, feed: Any) -> dict[str, Any]:
                self.clock.waited += self.seconds
                return {}

        engines = Waiting(clock, 0.004), TimedEngine(clock, 0.002)
        assert race(engines, [FEED]) == pytest.approx([0, 0.002])
        assert race(engines, [FEED], by_clock=True) == pytest.approx([0.004, 0.002])


def test_the_layers_of_these_tests_are_what_they_should_be() -> None:
    assert tuple(layer.node for layer in integer_layers(MODEL)) == LAYERS
