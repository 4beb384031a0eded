"""A measurement: one metric with its interval, and where it was taken."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Measurement(BaseModel):
    """``low`` and ``high`` bound a 95% confidence interval; both equal ``value`` for an exact count.

    Metric names used by the budgets: ``accuracy`` (0..1), ``accuracy_drop_pt`` (points lost against the baseline,
    paired), ``accuracy_ratio``, ``latency_p50_ms``, ``latency_p90_ms``, ``latency_p99_ms`` (end to end),
    ``latency_p50_speedup``, ``latency_p90_speedup`` (baseline over candidate, same run), ``size_bytes``,
    ``size_ratio`` (candidate over baseline, on disk), ``parameters``, ``peak_rss_mb``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    low: float
    value: float
    high: float
    n: int
    unit: str
