"""Calibration, streamed: statistics of a float graph's tensors over its inputs, one run in memory at a time.

The statistics say nothing about a target: histograms, and for the inputs of linear layers each channel's largest
magnitude and mean. They are made once and kept in a file; those that another target needs are added to it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically
from vlm_edge.graphs.chain import listening
from vlm_edge.quantizers.ranges import Histogram

Feed = Mapping[str, NDArray[Any]]


class Feeds(Protocol):
    """A component's inputs, run by run; can be gone through again and again, always in the same order."""

    def __iter__(self) -> Iterator[Feed]: ...

    def __len__(self) -> int: ...


@dataclass
class TensorStatistics:
    """One tensor over all runs.

    ``largest`` and ``total`` are by channel, the last axis: magnitude, and sum over ``rows`` rows. Both are empty for
    tensors whose channels nobody asked about.
    """

    histogram: Histogram = field(default_factory=Histogram)
    largest: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    rows: int = 0

    def add(self, values: NDArray[Any], *, channels: bool) -> None:
        """Take in one run's values."""
        if not values.size:
            return
        self.histogram.add(values)
        if channels:
            rows = values.reshape(-1, values.shape[-1])
            largest = np.maximum(rows.max(axis=0), -rows.min(axis=0))
            self.largest = np.maximum(self.largest, largest) if self.rows else largest
            total = rows.sum(axis=0, dtype=np.float64)
            self.total = self.total + total if self.rows else total
            self.rows += len(rows)

    @property
    def mean(self) -> NDArray[np.float32]:
        """By channel."""
        return (self.total / max(self.rows, 1)).astype(np.float32)


Statistics = dict[str, TensorStatistics]


def collect(
    model: ir.Model, feeds: Feeds, tensors: Sequence[str], channels: frozenset[str], threads: int
) -> Statistics:
    """Run the graph on every input, and take its tensors' statistics.

    Args:
        model: float32.
        feeds: at least one.
        tensors: names of inputs of the graph or of what its nodes give.
        channels: those of them whose channels are wanted, too.
        threads: of onnxruntime.

    Raises:
        VlmEdgeError: there is no input, or a tensor holds a value that is not finite.
    """
    if not len(feeds):
        raise VlmEdgeError("quantize: no calibration input", "give the data set a calibration split with samples")
    found = {name: TensorStatistics() for name in tensors}
    given = {str(value.name) for value in model.graph.inputs}
    computed = [name for name in tensors if name not in given]
    chain = listening(model, computed, threads) if computed else None
    for feed in feeds:
        for name in given.intersection(tensors):
            _add(found[name], name, feed[name], channels)
        for made in chain.run_parts(feed) if chain is not None else ():
            for name in made.keys() & found.keys():
                _add(found[name], name, made[name], channels)
    return found


def _add(statistics: TensorStatistics, name: str, values: NDArray[Any], channels: frozenset[str]) -> None:
    try:
        statistics.add(values, channels=name in channels)
    except ValueError as error:
        raise VlmEdgeError(
            f"quantize: the float graph's tensor {name}: {error}", "look at the model's weights and its preprocessing"
        ) from error


class Calibration:
    """A float graph's calibration inputs and what is known of its tensors over them.

    Statistics are taken when they are first asked for. With ``path`` they are read from that file, and kept there.
    """

    def __init__(self, feeds: Feeds, *, path: Path | None = None, threads: int = 1) -> None:
        self.feeds = feeds
        self.collected = 0
        """Tensors whose statistics were taken now, and not read from the file."""
        self._path = path
        self._threads = threads
        self._known = read_statistics(path) if path is not None and path.is_file() else {}

    def statistics(
        self, model: ir.Model, tensors: Sequence[str], channels: frozenset[str] = frozenset(), *, kind: str = ""
    ) -> Statistics:
        """Of ``tensors`` in ``model``; ``kind`` tells graphs apart whose tensors have the same names."""
        missing = [
            name
            for name in dict.fromkeys(tensors)
            if (known := self._known.get(f"{kind}{name}")) is None or (name in channels and not known.rows)
        ]
        if missing:
            self.collected += len(missing)
            taken = collect(model, self.feeds, missing, channels, self._threads)
            self._known |= {f"{kind}{name}": statistics for name, statistics in taken.items()}
            if self._path is not None:
                write_statistics(self._path, self._known)
        return {name: self._known[f"{kind}{name}"] for name in tensors}


def write_statistics(path: Path, statistics: Statistics) -> None:
    """A compressed npz file that appears whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {"names": np.array(list(statistics))}
    for index, each in enumerate(statistics.values()):
        histogram = each.histogram
        arrays |= {
            f"{index}.range": np.array([histogram.reach, histogram.low, histogram.high]),
            f"{index}.counts": histogram.counts,
            f"{index}.largest": each.largest,
            f"{index}.total": each.total,
            f"{index}.rows": np.array(each.rows),
        }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def read_statistics(path: Path) -> Statistics:
    """Read a file of :func:`write_statistics`; nothing where it is damaged, so that it is made again."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return {
                str(name): TensorStatistics(
                    _histogram(arrays[f"{index}.range"], arrays[f"{index}.counts"]),
                    arrays[f"{index}.largest"],
                    arrays[f"{index}.total"],
                    int(arrays[f"{index}.rows"]),
                )
                for index, name in enumerate(arrays["names"])
            }
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError):
        return {}


def _histogram(limits: NDArray[np.float64], counts: NDArray[np.int64]) -> Histogram:
    reach, low, high = map(float, limits)
    return Histogram(reach, low, high, counts)
