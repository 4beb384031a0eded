"""What both pipelines share: components by name, and rows in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from vlm_edge.engines.base import Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import PipelineManifest

Row = TypeVar("Row")


def batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Consecutive slices of at most ``size`` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def require(engines: Mapping[str, Engine], manifest: PipelineManifest, name: str) -> Engine:
    """The engine of one component.

    Raises:
        VlmEdgeError: the manifest has no such component.
    """
    if name not in engines:
        raise VlmEdgeError(
            f"a {manifest.pipeline} pipeline needs the component {name!r}; the manifest has {', '.join(engines)}",
            "export the model again",
        )
    return engines[name]
