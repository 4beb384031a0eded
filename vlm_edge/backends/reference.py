"""Reference runs of a component, and the check of a compiled engine against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.backends.base import Array, Engine, Feed
from vlm_edge.errors import VlmEdgeError
from vlm_edge.quantizers.affine import agreement

MAX_RELATIVE_ERROR = 1e-3
"""Largest error of a float component's output over its largest value."""
MIN_COSINE = 0.999
"""Smallest cosine between an INT8 component's output and its graph's."""
MOST_MORE_ERROR = 1.5
"""Largest ratio of an engine's distance from the float graph's outputs, 1 - cosine, to that of the INT8 graph."""
AS_IS: dict[str, str | int | float | bool] = {"graph_optimization": "disabled"}
"""Options of the reference engine with which it runs a graph as it stands."""
Run = tuple[dict[str, Array], dict[str, Array]]


class ReferenceRuns(Sequence[Run]):
    """Feeds and outputs of one component's graph, the first ``single_runs`` of them at batch 1.

    They are on disk, one in memory at a time: a decoder's logits and cache are hundreds of megabytes each.

    Args:
        folder: to keep them in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.single_runs = 0
        folder.mkdir(parents=True, exist_ok=True)

    def single_feeds(self) -> list[Feed]:
        """Feeds of the runs at batch 1."""
        return [self[position][0] for position in range(self.single_runs)]

    def keep(self, feed: Feed, outputs: Mapping[str, Array]) -> None:
        """Add a run."""
        self[self._count] = feed, outputs

    def __setitem__(self, position: int, run: tuple[Feed, Mapping[str, Array]]) -> None:
        named = {f"{side}/{name}": array for side, part in enumerate(run) for name, array in part.items()}
        np.savez(self._folder / f"{position}.npz", **named)  # type: ignore[arg-type]
        self._count = max(self._count, position + 1)

    def __getitem__(self, position: Any) -> Any:
        if not -self._count <= position < self._count:
            raise IndexError(position)
        with np.load(self._folder / f"{position % self._count}.npz") as arrays:
            sides = ({name[2:]: arrays[name] for name in arrays if name[0] == side} for side in "01")
            return tuple(sides)

    def __len__(self) -> int:
        return self._count


def check_component(
    name: str,
    engine: Engine,
    reference: Sequence[Run],
    floating: Callable[[], Iterable[Mapping[str, Array]]] | None,
    hint: str = "compile with `optimize: runtime`, which leaves the graph to the engine, and report this",
) -> dict[str, Any]:
    """Compare every recorded run, and return the worst agreement.

    An INT8 output may also stray where rounding in other places strays as far: where it is no further from the outputs
    of the graph in float arithmetic than the INT8 graph is itself.

    Args:
        floating: gives the outputs of each run's feed in the same graph with float arithmetic; None for a float graph.
        hint: the next step where they stray.

    Raises:
        VlmEdgeError: a float output is off by more than :data:`MAX_RELATIVE_ERROR`, or an INT8 one has a cosine below
            :data:`MIN_COSINE`.
    """
    pairs = ((outputs, _of_the_same_shapes(name, engine.infer(feed), outputs)) for feed, outputs in reference)
    if floating is not None:
        cosines = {output: value.cosine for output, value in agreement(pairs).items()}
        worst = min(cosines, key=lambda output: cosines[output])
        facts, fits = {"cosine": round(cosines[worst], 6), "output": worst}, cosines[worst] >= MIN_COSINE
        if not fits:
            engine_cosine, graph_cosine = _against_float(floating(), engine, reference)
            facts |= {"float_cosine": round(engine_cosine, 6), "graph_float_cosine": round(graph_cosine, 6)}
            fits = 1 - engine_cosine <= MOST_MORE_ERROR * (1 - graph_cosine)
    else:
        errors = dict.fromkeys(engine.outputs, 0.0)
        for wanted, got in pairs:
            errors = {name: max(error, relative_error(wanted[name], got[name])) for name, error in errors.items()}
        worst = max(errors, key=lambda output: errors[output])
        facts, fits = {"max_relative_error": errors[worst], "output": worst}, errors[worst] <= MAX_RELATIVE_ERROR
    if not fits:
        bound = f"cosine {MIN_COSINE}" if floating is not None else f"relative error {MAX_RELATIVE_ERROR}"
        raise VlmEdgeError(
            f"compile: {name}: {engine.name} strays from the graph: {facts}; the bound is {bound}",
            hint,
        )
    return facts


def _of_the_same_shapes(name: str, got: dict[str, Array], wanted: Mapping[str, Array]) -> dict[str, Array]:
    for output, array in wanted.items():
        if got[output].shape != array.shape:
            shapes = f"{list(got[output].shape)}, not {list(array.shape)}"
            raise VlmEdgeError(f"compile: {name}: the shape of {output!r} is {shapes}", "export the model again")
    return got


def _against_float(floating: Iterable[Mapping[str, Array]], engine: Engine, runs: Sequence[Run]) -> tuple[float, float]:
    """The least cosine with the float graph's outputs: of the engine's, and of the INT8 graph's."""

    def named(of_engine: Mapping[str, Array], of_graph: Mapping[str, Array]) -> dict[str, Array]:
        parts = (("engine", of_engine), ("graph", of_graph))
        return {f"{part}/{name}": value for part, outputs in parts for name, value in outputs.items()}

    found = agreement(
        (named(truth, truth), named(engine.infer(feed), outputs))
        for (feed, outputs), truth in zip(runs, floating, strict=True)
    )
    least = [
        min(value.cosine for name, value in found.items() if name.startswith(part)) for part in ("engine", "graph")
    ]
    return least[0], least[1]


def relative_error(wanted: Array, got: Array) -> float:
    """max |got - wanted| / max |wanted|; 0 for empty or equal outputs, infinity where a value is not finite."""
    if not wanted.size or np.array_equal(wanted, got):
        return 0.0
    error = float(np.abs(got.astype(np.float64) - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))
    return error if np.isfinite(error) else float("inf")
