"""Settings of a latency measurement: its length and its precision."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from vlm_edge.core.measurement import PATIENCE_S


class LatencySettings(BaseModel):
    """A measurement is a row of rounds, each with processes of its own.

    After every ``look_rounds`` rounds it ends if the interval of the median's speed-up is within ``precision`` of its
    value to either side, and those of rarer percentiles within ``tail_precision``; else when ``seconds`` have passed.
    While a verdict is open then, it goes on until ``open_seconds`` have passed; while there are too few queries for
    what was asked, until ``patience`` seconds have. Percentiles that then have too few are not reported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=32, ge=1, description="images and texts that the queries go round")
    seed: int = 0
    look_rounds: int = Field(default=6, ge=2, description="rounds between two looks at the width of the interval")
    round_seconds: float = Field(default=1.0, gt=0, description="time of all engines' queries in a round")
    precision: float = Field(default=0.015, gt=0)
    tail_precision: float = Field(default=0.05, gt=0)
    seconds: float = Field(default=15.0, ge=0, description="time after which it ends, its verdict being decided")
    patience: float = Field(default=PATIENCE_S, gt=0, description="time after which it ends with what there is")
    open_seconds: float = Field(default=PATIENCE_S, gt=0, description="time after which an open verdict is left open")
    warmup_seconds: float = Field(default=5.0, ge=0, description="most that warming up one process may take")
    block_seconds: float = Field(default=0.006, gt=0, description="length of the slower engine's turns")
    pin: bool = Field(default=True, description="bind CPU engines to as many CPUs as they have threads")
    cold_starts: int = Field(default=7, ge=6, description="fresh processes for the time to a first answer")
    batch_seconds: float = Field(default=0.5, ge=0, description="time of batches in a round, for the throughput")
    profile_queries: int = Field(default=16, ge=1, description="queries of a round that each component is clocked in")
    timeout_s: float = Field(default=300.0, gt=0, description="longest wait for an engine to load or a turn to end")
