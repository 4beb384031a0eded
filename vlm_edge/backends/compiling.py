"""One component to compile for an engine, and what several backends do with it."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vlm_edge.backends import REFERENCE, load_engine
from vlm_edge.backends.base import Array, Engine, Feed
from vlm_edge.backends.reference import AS_IS, ReferenceRuns, check_component
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.ops import UncountedOperator
from vlm_edge.graphs.passes.half_precision import HALVES, as_float32
from vlm_edge.graphs.passes.integer_forms import InFloat
from vlm_edge.graphs.passes.slim import Slim
from vlm_edge.graphs.shapes import multiply_adds
from vlm_edge.processing.manifest import Component, PipelineManifest

WORK_PER_THREAD = 32_000_000
"""Multiply-adds at batch 1 that are worth one more thread: below, waking it takes what it saves."""
MARGIN = 0.01
"""A form that is faster by less than this share of the time of what is raced is not taken."""
ROUNDS, SECONDS, MOST_SECONDS = 15, 0.15, 3.0
"""A race lasts at least so many rounds and seconds, but is over after the last."""
APART = 0.5
"""It is also over after n rounds if the slower engine's best took 1 + APART / n^2 times the faster one's worst."""


@dataclass(frozen=True)
class CompileJob:
    """One component: its graph, what the engine is held against, where its files go, and the stage's settings.

    ``name`` is the component's in ``manifest``, ``component`` its row there. ``out`` is the folder of the result, where
    files named after the graph belong to the component; ``scratch`` is empty before and after. ``full`` is False where
    the engine optimizes the graph by itself when it loads it.
    """

    name: str
    graph: Path
    component: Component
    manifest: PipelineManifest
    reference: ReferenceRuns
    out: Path
    scratch: Path
    threads: int = 1
    full: bool = True
    tune_seconds: float = 0.0
    max_batch: int = 16
    compute_capabilities: tuple[str, ...] = ()

    @cached_property
    def integer(self) -> bool:
        """True where the graph has 8-bit or 4-bit constants, so that it is compared as an INT8 one."""
        return is_integer(self.graph)

    @cached_property
    def half(self) -> bool:
        """True where the graph computes in 16 bits."""
        return bool(self._half_readers - {"Cast"})

    @cached_property
    def half_weights(self) -> bool:
        """True where the graph stores weights in 16 bits, and computes in float32."""
        return self._half_readers == {"Cast"}

    @cached_property
    def _half_readers(self) -> set[str]:
        """The operators that read 16-bit constants."""
        values = [each for each in load_graph(self.graph).graph.initializers.values() if each.dtype in HALVES.values()]
        return {node.op_type for value in values for node in value.consumers()}

    def check(self, engine: Engine) -> dict[str, Any]:
        """Hold an engine against the graph; see :func:`vlm_edge.backends.reference.check_component`."""
        return check_component(self.name, engine, self.reference, self.in_float if self.integer or self.half else None)

    def in_float(self) -> Iterator[dict[str, Array]]:
        """The outputs of each reference run's feed in the same graph with float arithmetic."""
        engine = float_engine(self.graph, self.component, self.scratch)
        return (engine.infer(feed) for feed, _ in self.reference)

    def threads_worth(self) -> dict[str, int]:
        """A run's ``multiply_adds``, and how many ``threads`` they are worth: all where they can't be counted."""
        try:
            total = multiply_adds(self.graph, [self.reference[0][0]])
        except UncountedOperator:
            return {"threads": self.threads}
        worth = max(1, min(self.threads, math.ceil(total / WORK_PER_THREAD)))
        return {"multiply_adds": total, "threads": worth}

    def write_slim(
        self, model: ir.Model, folder: Path, *, smallest_shared: int = 0
    ) -> tuple[Component, dict[str, Any]]:
        """Save ``model``, changed in place, as small as it gets; its row and its number of nodes.

        ``smallest_shared`` as in :class:`vlm_edge.graphs.passes.slim.Slim`.
        """
        file = self.graph.with_suffix(".onnx").name
        Slim(smallest_shared=smallest_shared)(model)
        save_graph(model, folder / file)
        return self.component.model_copy(update={"file": file}), {"nodes": len(model.graph)}


def is_integer(graph: Path) -> bool:
    """True where a graph has 8-bit or 4-bit constants."""
    integers = (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT4, ir.DataType.INT4)
    return any(value.dtype in integers and value.shape for value in load_graph(graph).graph.initializers.values())


def reference_engine(
    path: Path, component: Component, threads: int = 1, options: Mapping[str, str | int | float | bool] | None = None
) -> Engine:
    """A graph on the engine that stages calibrate with and check against.

    A 16-bit graph runs in float32 arithmetic that rounds wherever a device rounds: onnxruntime has no kernels for
    bfloat16 on a CPU, and those that it lacks for float16 it replaces by float32 ones without rounding between them.
    """
    model = load_graph(path)
    if as_float32(model, rounded=True) is None:
        return load_engine(REFERENCE, path, component, threads, options)
    with tempfile.TemporaryDirectory(prefix="vlm-edge-") as folder:
        copy = Path(folder) / path.name
        save_graph(model, copy)
        return load_engine(REFERENCE, copy, component, threads, options)


def float_engine(path: Path, component: Component, scratch: Path) -> Engine:
    """An INT8 graph in float arithmetic, without any graph optimization; by way of a file in ``scratch``."""
    copy = scratch / "floating" / path.name
    copy.parent.mkdir(exist_ok=True)
    model = load_graph(path)
    InFloat()(model)
    save_graph(model, copy)
    engine = reference_engine(copy, component, 1, AS_IS)
    shutil.rmtree(copy.parent)
    return engine


def race(engines: Sequence[Engine], feeds: Sequence[Feed], *, by_clock: bool = False) -> list[float]:
    """The lower quartile of each engine's seconds for all ``feeds``, run in turns after two rounds of warm-up, or one
    that took half of :data:`MOST_SECONDS`.

    The engines have one thread, and CPU time is what counts: with two threads and wall time, a machine with other work
    on it chose forms that were 1.3 times slower. The lower quartile, because what else runs only ever adds. With
    ``by_clock``, for engines of several threads, it is the shortest time by the clock.
    """
    now = time.perf_counter if by_clock else time.process_time
    times: list[list[float]] = [[] for _ in engines]
    began, warm_up = now(), 2
    for number in range(10_000):
        if number == warm_up:
            times, began = [[] for _ in engines], now()
        for engine, own in zip(engines, times, strict=True):
            start = now()
            for feed in feeds:
                engine.infer(feed)
            own.append(now() - start)
        elapsed = now() - began
        if number == 0 and elapsed > MOST_SECONDS / 2:
            warm_up = 1
        measured = number + 1 - warm_up
        apart = max(map(min, times)) > (1 + APART / max(measured, 1) ** 2) * min(map(max, times))
        if measured >= 3 and elapsed > MOST_SECONDS:
            break
        if measured >= 1 and elapsed > SECONDS and (apart or measured > ROUNDS):
            break
    return [float(np.percentile(own, 0 if by_clock else 25)) for own in times]
