"""Explain a plan by the program that it holds: fused kernels, their precision, and kernels that only move data.

No GPU is needed, so there are no times.
"""

from __future__ import annotations

from typing import Any

from vlm_edge.backends.explaining import ExplainJob
from vlm_edge.backends.tensorrt_rtx.plan import PlanKernel, kernels_of
from vlm_edge.errors import VlmEdgeError
from vlm_edge.explain.compiled import KernelCause, kernel_facts


def _float_weights(kernel: PlanKernel) -> bool:
    return kernel.kind == "float product" and kernel.weighted


CAUSES: tuple[KernelCause, ...] = (
    KernelCause(
        "float-weights",
        "products of a weight in float",
        _float_weights,
        0.67,
        "their data or weights are not quantized, or in a form that the compiler leaves in float",
        "`quantize: {components: {NAME: int8}}`; the facts of compile (left_in_float) name layers that were quantized",
    ),
    KernelCause(
        "unfused-qdq",
        "quantizers in a kernel of their own",
        lambda kernel: kernel.kind == "activation Q/DQ",
        1.0,
        "a quantizer that was not fused into the kernel before it, such as that of an input",
        "exclude the operator after it from quantization, if it gains less than this costs",
    ),
    KernelCause(
        "layout-transposes",
        "kernels that only move data",
        lambda kernel: kernel.kind == "layout",
        1.0,
        "a reformat or copy between kernels that want different layouts",
        "keep neighbouring layers all in INT8, or all in float",
    ),
)


def explain_component(job: ExplainJob) -> dict[str, Any]:
    """The JSON values of a plan's explanation.

    Raises:
        VlmEdgeError: the file holds no program that this version reads.
    """
    kernels = list(kernels_of(job.file.read_bytes()))
    if not kernels:
        raise VlmEdgeError(f"{job.file}: no plan, or of a version whose text is not known", "compile the model again")
    return {"file": job.file.name, "threads": job.threads, **kernel_facts(kernels, CAUSES, timed=False)}
