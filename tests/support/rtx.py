"""TensorRT-RTX for tests: its bindings, and plans of components of an exported pipeline."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.backends.tensorrt.compile import plan_of
from vlm_edge.backends.tensorrt.profiles import dimension_ranges
from vlm_edge.backends.tensorrt_rtx.library import bindings
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.stages.compile_references import BATCHES

PRODUCT = "TensorRT-RTX"


def nvidia() -> Any:
    """The bindings. Only a platform for which NVIDIA has no wheels skips the test: `make test` installs them."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("NVIDIA's wheels are for x86-64 Linux")
    return bindings()


def plan(path: Path, name: str, manifest: PipelineManifest) -> bytes:
    """The plan of the graph in ``path``, with the profiles of the manifest's component ``name``."""
    ranges = dimension_ranges(manifest, max(BATCHES))
    return bytes(plan_of(nvidia(), path, manifest.components[name], ranges, PRODUCT))
