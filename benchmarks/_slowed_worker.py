"""A latency worker whose queries take longer by a known share: ``python slowed_worker.py 0.1``. For gate_latency.py."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

from vlm_edge.evaluation.latency_worker import Worker, main
from vlm_edge.evaluation.queries import Query


def slowed(query: Query, share: float) -> None:
    """The query, then a spin of ``share`` of the time that it took."""
    began = time.perf_counter_ns()
    query()
    ends = began + (1 + share) * (time.perf_counter_ns() - began)
    while time.perf_counter_ns() < ends:
        pass


class SlowedWorker(Worker):
    """Spins inside the timed region of every query."""

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """As the worker it stands in for."""
        reply = super().handle(request)
        if request["do"] == "load":
            self._queries = [partial(slowed, query, float(sys.argv[1])) for query in self._queries]
        return reply


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(SlowedWorker()))
