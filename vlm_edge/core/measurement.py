"""A measurement: one metric with its interval, and where it was taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from vlm_edge.checked import JsonObject

PATIENCE_S = 300.0
"""The most seconds that one latency measurement goes on, where its verdict is open."""


class Measurement(BaseModel):
    """``low`` and ``high`` bound a 95% confidence interval; both equal ``value`` for an exact count.

    Names. ``accuracy`` is the task's primary metric; others have names of their own (``top5``, ``f1``,
    ``recall_at_1``). For each metric M there are ``M_drop_pt`` (paired, in hundredths, baseline less candidate) and
    ``M_ratio`` (candidate over baseline); ``[SLICE]`` follows for a part of the data. Fidelity to the baseline:
    ``embedding_cosine``, ``modality_gap``, ``token_agreement``, ``exact_match``. Time, end to end:
    ``latency_p50_ms`` (p90, p99), ``latency_p50_speedup`` (baseline over candidate, same run), ``latency_p50_control``
    (one engine in two processes: what this host can tell apart), ``latency_p50_ms[COMPONENT]``, ``cold_start_ms``,
    ``throughput_per_s``, ``cost_per_1000``. Footprint: ``size_bytes``, ``size_ratio`` (candidate over baseline, on
    disk), ``parameters``, ``macs``, ``peak_rss_mb``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: str
    low: float
    value: float
    high: float
    n: int = Field(ge=1, le=10**12)
    unit: str

    @model_validator(mode="after")
    def _ordered(self) -> Measurement:
        if self.low > self.high:
            raise ValueError(f"{self.metric[:40]}: the interval ends before it begins: {self.low:g} > {self.high:g}")
        return self


class Timed(BaseModel):
    """The result of a latency measurement, and the host's conditions meanwhile (JSON values)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measurements: list[Measurement]
    conditions: JsonObject = {}


def with_cost(measurements: Sequence[Measurement], price_per_hour: float | None) -> list[Measurement]:
    """The measurements with the ``cost_per_1000`` that their throughput has at a price, and no other."""
    found = []
    for each in measurements:
        if each.metric == "cost_per_1000":
            continue
        found.append(each)
        if each.metric == "throughput_per_s" and price_per_hour is not None:
            low, value, high = (1e3 * price_per_hour / 3600 / rate for rate in (each.high, each.value, each.low))
            found.append(Measurement(metric="cost_per_1000", low=low, value=value, high=high, n=each.n, unit=""))
    return found


@dataclass(frozen=True)
class Timing:
    """Settings of a run's latency measurements: ``remeasure`` takes those again that the store has.

    One is measured on while its verdict is open, at most for ``patience_s`` seconds.
    """

    remeasure: bool = False
    patience_s: float = PATIENCE_S


@dataclass(frozen=True)
class Until:
    """The end of one latency measurement: ``is_open`` is False of it, or ``open_s`` seconds have passed.

    With too few queries for what was asked it goes on until ``patience_s`` seconds have passed.
    """

    is_open: Callable[[Sequence[Measurement]], bool] = lambda _: False
    patience_s: float = PATIENCE_S
    open_s: float = PATIENCE_S


IN_ANY_CASE = Until()
"""No verdict depends on the measurement."""


class LatencyAsked(BaseModel):
    """The times to measure: percentiles in 0..1, throughput at ``batch`` (None: not), time to a first answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    percentiles: tuple[float, ...] = (0.5, 0.9)
    batch: int | None = None
    cold_start: bool = False


class _Compared(BaseModel):
    measurements: list[Measurement]
    regressions: list[dict[str, Any]]


_FORMS: dict[str, TypeAdapter[Any]] = {
    "accuracy": TypeAdapter(dict[str, Any]),
    "compare": TypeAdapter(_Compared),
    "latency": TypeAdapter(Timed),
    "footprint": TypeAdapter(list[Measurement]),
    "preflight": TypeAdapter(dict[str, Any]),
}


def is_kept_form(measure: str, value: Any) -> bool:
    """True if a cached value has the form of such a measurement; a store may come from anywhere."""
    try:
        _FORMS[measure].validate_python(value)
    except ValidationError:
        return False
    return True


How = Literal["paired", "same baseline", "unpaired", "exact"]


class Difference(BaseModel):
    """``measured`` is the later run against the earlier: a drop in points, or a ratio (later over earlier).

    ``how``: ``paired`` sample by sample; through speed-ups over the ``same baseline`` engine; ``unpaired``, from the
    two intervals as if independent; ``exact`` for counts. ``reason`` says why there is no number, or no better one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: Measurement | None = None
    how: How | None = None
    reason: str | None = None
