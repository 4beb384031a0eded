"""Compile for TensorRT-RTX: plans for RTX GPUs from Ampere on, built on any x86-64 Linux machine, without a GPU."""

from __future__ import annotations

from typing import Any

from vlm_edge.backends.compiling import CompileJob
from vlm_edge.backends.tensorrt.compile import plan_of
from vlm_edge.backends.tensorrt.profiles import dimension_ranges
from vlm_edge.backends.tensorrt_rtx.library import PRODUCT, bindings
from vlm_edge.backends.tensorrt_rtx.plan import in_float
from vlm_edge.graphs.edit import name_of
from vlm_edge.graphs.files import load_graph
from vlm_edge.graphs.passes.tensorrt_form import integer_nodes
from vlm_edge.processing.manifest import Component


def compile_component(job: CompileJob) -> tuple[Component, dict[str, Any]]:
    """Build the plan of one component; its row in the manifest, and which layers run in INT8.

    Raises:
        VlmEdgeError: as :func:`vlm_edge.backends.tensorrt.compile.plan_of`.
    """
    ranges = dimension_ranges(job.manifest, job.max_batch)
    plan = plan_of(bindings(), job.graph, job.component, ranges, PRODUCT)
    path = job.out / f"{job.graph.stem}.plan"
    path.write_bytes(plan)
    quantized = {name_of(node) for node in integer_nodes(load_graph(job.graph).graph)}
    left = quantized & in_float(bytes(plan))
    facts = {"int8_layers": len(quantized) - len(left), "left_in_float": sorted(left)} if quantized else {}
    return job.component.model_copy(update={"file": path.name}), facts
