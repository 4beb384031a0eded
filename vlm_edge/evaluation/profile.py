"""Where a query's time goes: engines wrapped in a clock, beside the plain ones that the latency is measured with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from vlm_edge.backends.base import Array, Engine, Feed

PREPROCESSING, OTHER = "preprocessing", "other"


class ClockedEngine:
    """An engine that adds up the time of its runs, in ms, and keeps when the first one began."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.spent_ms = 0.0
        self.began_ns: int | None = None

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; see :class:`vlm_edge.backends.base.Engine`."""
        began = time.perf_counter_ns()
        outputs = self._engine.infer(feed)
        self.spent_ms += (time.perf_counter_ns() - began) / 1e6
        if self.began_ns is None:
            self.began_ns = began
        return outputs

    def reset(self) -> None:
        self.spent_ms, self.began_ns = 0.0, None


def profile_query(query: Callable[[], object], engines: Mapping[str, ClockedEngine]) -> dict[str, float]:
    """Milliseconds of one query in each component (all its runs together), ``preprocessing`` and ``other``.

    ``preprocessing`` is everything before the first run of an engine: the image's resize, crop and normalisation (and
    a tokenizer that runs before it). ``other`` is the rest: tokenizing between runs, the decoding loop, Python.
    """
    for engine in engines.values():
        engine.reset()
    began = time.perf_counter_ns()
    query()
    whole_ms = (time.perf_counter_ns() - began) / 1e6
    spent = {name: engine.spent_ms for name, engine in engines.items()}
    first = min((engine.began_ns for engine in engines.values() if engine.began_ns is not None), default=began)
    spent[PREPROCESSING] = (first - began) / 1e6
    spent[OTHER] = max(0.0, whole_ms - sum(spent.values()))
    return spent
