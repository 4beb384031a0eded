"""One component's graph in INT8: what is tried, how it is checked, and which layers stay float."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_edge.errors import VlmEdgeError
from vlm_edge.stages.quantize_attempt import Attempt, check, prepare
from vlm_edge.stages.quantize_config import QuantizeConfig, Scheme

if TYPE_CHECKING:
    import onnx_ir as ir

    from vlm_edge.backends.lowering import Lowering
    from vlm_edge.core.measurement import Measurement
    from vlm_edge.core.stage import Progress
    from vlm_edge.graphs.passes.half_precision import HalfPrecision
    from vlm_edge.processing.manifest import Component
    from vlm_edge.quantization.calibration import Calibration, Feed, Feeds
    from vlm_edge.quantization.sensitivity import Sensitivity, SwitchedGraph
    from vlm_edge.quantization.static import StaticSettings
    from vlm_edge.quantizers.affine import Agreement
    from vlm_edge.stages.quantize_capture import Captured

MIN_COSINE = 0.98
"""A component whose outputs on held-out samples have a smaller cosine with the float outputs is not accepted, unless
the task's metric has the last word."""
MIN_SQNR_DB = 20.0
"""Noisier integer layers are left float one after another, the worst first (20 dB: a cosine of 0.995)."""
GOOD_COSINE = 0.999
"""Below this, a more careful variant of the same scheme is tried, and the best one is taken."""
MOST_LEFT_OUT = 0.5
"""Unless a recipe sets the bound, a component of which more layers would have to stay float gets int8 weights only."""
RANKED_ON = 4
"""Held-out runs that layers are ranked on: each takes one run for each layer."""
LARGEST_RANKED_BYTES = 400 * 10**6
"""Layers of larger graphs are ranked only where the ranking decides something."""


@dataclass(frozen=True)
class Quantization:
    """Settings that all components of a pipeline share; ``source`` and ``out`` are the folders of graphs."""

    source: Path
    out: Path
    lowering: Lowering
    config: QuantizeConfig
    threads: int
    progress: Progress


class ComponentQuantizer:
    """Quantizes one component with the first scheme that is accepted, and again with other layers float."""

    def __init__(
        self,
        work: Quantization,
        name: str,
        component: Component,
        captured: Captured,
        calibration: Calibration,
        kept: frozenset[str],
    ) -> None:
        self.name = name
        self.component = component
        self.original = work.source / component.file
        self.path = work.out / component.file
        self.captured = captured
        self.calibration = calibration
        self.kept = kept
        self.lowering, self.config = work.lowering, work.config
        self.threads, self.progress = work.threads, work.progress
        self.asked: Scheme = "none"
        self.half: HalfPrecision | None = None
        """The pass that makes graphs 16-bit again, where the exported one is."""
        self.tried: list[dict[str, Any]] = []
        self.chosen: Attempt | None = None
        self.because: dict[str, str] = {}
        """Nodes that are float whatever the task's metric says, and why."""
        self.ranked: list[Sensitivity] = []
        self.ranked_on: Attempt | None = None
        self.drops: dict[str, Measurement] = {}
        """The loss of the task's metric by node, each quantized alone."""

    def choose(self, scheme: Scheme) -> None:
        """Write the component's graph in the first form that is accepted.

        Raises:
            VlmEdgeError: none is.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if scheme == "none":
            for file in sorted(self.original.parent.glob(f"{self.original.name}*")):
                shutil.copyfile(file, self.path.with_name(file.name))
            return
        from vlm_edge.graphs.files import load_graph, weight_bytes
        from vlm_edge.graphs.passes.half_precision import as_float32

        model = load_graph(self.original)
        self.half = as_float32(model)
        self.floating = prepare(model)
        self.asked = scheme
        chosen: Attempt | None = None
        for attempt in self._attempts(scheme):
            self._note(attempt)
            if chosen is None or attempt.cosine > chosen.cosine:
                chosen = attempt
            if self._good(chosen):
                break
        assert chosen is not None
        judged = self.config.max_drop_pt is not None  # by the task's metric, which knows what noise costs
        if chosen.static is not None and (self.config.min_sqnr_db is not None or not judged):
            chosen = self._without_noise(chosen)
        if scheme != "int8-weights" and chosen.cosine < MIN_COSINE and not judged:
            weights = self._plain("int8-weights", self.kept)
            self._note(weights)
            chosen = max(chosen, weights, key=lambda attempt: attempt.cosine)
        if chosen.cosine < MIN_COSINE and not judged:
            raise VlmEdgeError(
                f"quantize: {self.name}: its outputs stray from the float graph's: "
                + ", ".join(f"{each['scheme']}: cosine {each['cosine']:.5f} ({each['worst']})" for each in self.tried)
                + f"; at least {MIN_COSINE} is needed",
                f"leave it in floating point: components: {{{self.name}: none}}",
            )
        if self.config.sensitivity != "none" and weight_bytes(self.floating) <= LARGEST_RANKED_BYTES:
            self._rank(chosen)
        self._take(chosen)
        self.because = {node: "keep_float" if node in self.kept else "noise" for node in chosen.left_out}

    def leave_float(self, nodes: frozenset[str]) -> None:
        """Write the graph again, with these layers float beside those that were so from the start."""
        left_out = nodes.union(self.because)
        if self.chosen is None or left_out == self.chosen.left_out:
            return
        if self.chosen.settings is not None:
            self._take(self._static(replace(self.chosen.settings, left_out=left_out)))
        else:
            self._take(self._plain(self.chosen.scheme, left_out))

    def candidates(self) -> list[Sensitivity]:
        """The layers that are quantized; those with the largest loss of the task's metric first where it was measured,
        and the noisiest."""
        if self.chosen is None:
            return []
        self._rank(self.chosen)

        def order(each: Sensitivity) -> tuple[float, float]:
            drop = self.drops.get(each.layer.node)
            return (0.0 if drop is None else -drop.value), each.sqnr_db

        return sorted((each for each in self.ranked if each.layer.node not in self.because), key=order)

    def switched(self) -> SwitchedGraph:
        """The float graph, with a switch for each of the layers that were ranked."""
        from vlm_edge.quantization.sensitivity import SwitchedGraph

        assert self.ranked_on is not None
        static = self.ranked_on.static
        graphs = (self.floating, self.ranked_on.graph) if static is None else (static.floating, static.quantized)
        return SwitchedGraph(*graphs, self.threads, outputs=self.lowering.rounds_outputs and static is not None)

    def _rank(self, attempt: Attempt) -> None:
        """Every layer with the noise that it alone adds; nothing to do where it is known for this scheme."""
        from vlm_edge.quantization.sensitivity import rank_layers

        if self.ranked_on is not None and self.ranked_on.scheme == attempt.scheme:
            return
        self.ranked_on = attempt
        with self.progress.bar(f"rank layers of {self.name}", None):
            self.ranked = rank_layers(self.switched(), spread(self.captured.held_out, RANKED_ON))

    def _take(self, attempt: Attempt) -> None:
        self.chosen = attempt
        self._write(attempt.graph)

    def _note(self, attempt: Attempt) -> None:
        self.tried.append(attempt.as_facts() | {"worst": attempt.worst})

    def _attempts(self, scheme: Scheme) -> Iterator[Attempt]:
        """The attempts for a scheme, the cheapest first."""
        from vlm_edge.quantization.static import StaticSettings

        if scheme != "int8":
            yield self._plain(scheme, self.kept)
            return
        auto = self.config.ranges == "auto"
        for ranges in ("minmax", "mse") if auto else (self.config.ranges,):
            for smooth in (False, True):
                yield self._static(StaticSettings(ranges, self.config.percentile, smooth, self.kept))

    def _good(self, attempt: Attempt) -> bool:
        wanted = self.config.min_sqnr_db
        return attempt.cosine >= GOOD_COSINE and (wanted is None or attempt.sqnr_db >= wanted)

    def _plain(self, scheme: str, left_out: frozenset[str]) -> Attempt:
        graph = self.lowering.lower(self.floating, scheme, left_out)
        return Attempt(scheme, graph, left_out, self._check(graph))

    def _static(self, settings: StaticSettings) -> Attempt:
        from vlm_edge.quantization.static import static_graph

        scheme = "int8-smooth" if settings.smooth else "int8"
        static = static_graph(self.floating, self.calibration, self.captured.held_out, self.lowering, settings)
        graph = self.lowering.lower(static.quantized, scheme, settings.left_out)
        return Attempt(scheme, graph, settings.left_out, self._check(graph), static, settings)

    def _write(self, graph: ir.Model) -> None:
        from vlm_edge.graphs.files import save_graph

        if self.half is not None:
            graph = graph.clone()
            self.half(graph)
        save_graph(graph, self.path)

    def _check(self, graph: ir.Model) -> dict[str, Agreement]:
        self._write(graph)
        return check(self.path, self.component, self.captured, self.threads)

    def _without_noise(self, chosen: Attempt) -> Attempt:
        """The attempt with the fewest layers float that meets the noise bound."""
        bound = MIN_SQNR_DB if self.config.min_sqnr_db is None else self.config.min_sqnr_db
        if chosen.sqnr_db >= bound:
            return chosen
        from vlm_edge.quantization.sensitivity import fewest_left_out

        assert chosen.settings is not None
        self._rank(chosen)
        feeds = spread(self.captured.held_out, RANKED_ON)
        start = max(1, len(fewest_left_out(self.switched(), self.ranked, feeds, bound)))
        most = len(self.ranked) if self.config.min_sqnr_db is not None else int(MOST_LEFT_OUT * len(self.ranked))
        best = chosen
        for count in _rising(start, most):
            nodes = frozenset(each.layer.node for each in self.ranked[:count])
            best = self._static(replace(chosen.settings, left_out=self.kept | nodes))
            self._note(best)
            if best.sqnr_db >= bound:
                return best
        if self.config.min_sqnr_db is not None:
            raise VlmEdgeError(
                f"quantize: {self.name}: {best.sqnr_db:.1f} dB with all {most} layers float; "
                f"min_sqnr_db asks for {bound:g}",
                f"give a lower min_sqnr_db, or leave it in floating point: components: {{{self.name}: none}}",
            )
        return max(chosen, best, key=lambda attempt: attempt.cosine)

    def facts(self) -> dict[str, Any]:
        """The component's facts.

        Raises:
            VlmEdgeError: the graph breaks a rule of its engine's.
        """
        if self.chosen is None:
            return {"asked": "none", "scheme": "none"}
        from vlm_edge.graphs.files import graph_bytes
        from vlm_edge.graphs.layers import layer_names
        from vlm_edge.graphs.report import quantized_ops
        from vlm_edge.stages.quantize_layers import layer_rows, sensitivity_rows

        self.lowering.check(self.path)
        chosen, names = self.chosen, layer_names(self.floating)
        facts: dict[str, Any] = {
            "asked": self.asked,
            "scheme": chosen.scheme,
            "attempts": [{key: value for key, value in each.items() if key != "worst"} for each in self.tried],
            "outputs": {
                output: {"cosine": round(value.cosine, 6), "sqnr_db": round(value.sqnr_db, 2)}
                for output, value in chosen.outputs.items()
            },
            "float_size_bytes": graph_bytes(self.original),
            "size_bytes": graph_bytes(self.path),
            "operators": quantized_ops(chosen.graph).as_facts(),
            "layers": layer_rows(self.floating, chosen, self.captured.held_out, self.threads, self.ranked, self.drops),
            "float_layers": sorted(names[node] for node in chosen.left_out),
            "float_because": {
                names[node]: self.because.get(node, "max_drop_pt")
                for node in sorted(chosen.left_out, key=lambda node: names[node])
            },
            "sensitivity": sensitivity_rows(self.ranked, names, chosen.left_out, self.drops),
        }
        if chosen.static is not None and chosen.settings is not None:
            facts |= {
                "ranges": chosen.settings.ranges,
                "corrected_biases": len(chosen.static.corrected),
                "calibrated_tensors": self.calibration.collected,
            }
        return facts


def _rising(start: int, end: int) -> Iterator[int]:
    """start, then ever larger steps, and the end."""
    count = start
    while count < end:
        yield count
        count += max(1, count // 4)
    if start <= end:
        yield end


def spread(feeds: Feeds, count: int) -> list[Feed]:
    """At most ``count`` of the inputs, evenly spread over them."""
    step = max(1, len(feeds) // count)
    return [feed for index, feed in enumerate(feeds) if index % step == 0][:count]
