"""Compile for TensorRT: a plan of each component, built on the device that runs it."""

from __future__ import annotations

from typing import Any

from vlm_edge.backends.compiling import CompileJob
from vlm_edge.backends.tensorrt.kit import TensorRtKit
from vlm_edge.backends.tensorrt.rules import require_tensorrt_rules
from vlm_edge.processing.manifest import Component


def compile_component(job: CompileJob) -> tuple[Component, dict[str, Any]]:
    """Build the plan of one component; its row in the manifest, and no facts.

    Raises:
        VlmEdgeError: the graph breaks a rule of TensorRT's, or as :meth:`.TensorRtKit.build`.
    """
    require_tensorrt_rules(job.graph)
    form = TensorRtKit()
    profile = form.profile(job.component, job.manifest, job.max_batch)
    return form.build(job.graph, job.component, profile, job.out), {}
