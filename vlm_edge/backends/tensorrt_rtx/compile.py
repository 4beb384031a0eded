"""Compile for TensorRT-RTX: plans for RTX GPUs from Ampere on, built on any x86-64 Linux machine, without a GPU."""

from __future__ import annotations

from typing import Any

from vlm_edge.backends.compiling import CompileJob
from vlm_edge.backends.tensorrt.build import plan_of
from vlm_edge.backends.tensorrt.profiles import dimension_ranges, profile_shapes
from vlm_edge.backends.tensorrt_rtx.plan import in_float
from vlm_edge.backends.tensorrt_rtx.wheels import PRODUCT, bindings
from vlm_edge.graphs.edit import name_of
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.passes.split_fused import SplitFused
from vlm_edge.graphs.passes.tensorrt_form import integer_nodes
from vlm_edge.processing.manifest import Component


def compile_component(job: CompileJob) -> tuple[Component, dict[str, Any]]:
    """Build the plan of one component; its row in the manifest, and which layers run in INT8.

    Unless the graph is wanted as it is, fused queries, keys and values are taken apart, which else stay in float.

    Raises:
        VlmEdgeError: as :func:`vlm_edge.backends.tensorrt.build.plan_of`.
    """
    graph, model = job.graph, load_graph(job.graph)
    if job.full and SplitFused()(model).modified:
        graph = job.scratch / job.graph.name
        save_graph(model, graph)
    shapes = profile_shapes(job.component, dimension_ranges(job.manifest, job.max_batch))
    plan = plan_of(bindings(), graph, shapes, PRODUCT, capabilities=job.compute_capabilities)
    for file in job.scratch.glob(f"{job.graph.name}*"):
        file.unlink()
    path = job.out / f"{job.graph.stem}.plan"
    path.write_bytes(plan)
    quantized = {name_of(node) for node in integer_nodes(model.graph)}
    left = quantized & in_float(bytes(plan))
    facts = {"int8_layers": len(quantized) - len(left), "left_in_float": sorted(left)} if quantized else {}
    return job.component.model_copy(update={"file": path.name}), facts
