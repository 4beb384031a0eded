"""Compile for OpenVINO: its IR with the precision, for what is not INT8, that is fastest here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.backends.compiling import MARGIN, CompileJob, race
from vlm_edge.backends.openvino.engine import OpenVinoEngine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs.files import load_graph
from vlm_edge.machine import computes_bfloat16
from vlm_edge.processing.manifest import Component

BFLOAT16: dict[str, str | int | float | bool] = {"INFERENCE_PRECISION_HINT": "bf16"}
SMALLEST_SHARED = 65536
"""With fixed shapes OpenVINO 2026.4 computes in float where two layers read one scale or zero point: ViT-B/32 took 2.5
times as long. Tables and weights of this many bytes may be shared."""


def compile_component(job: CompileJob) -> tuple[Component, dict[str, Any]]:
    """Write one component for OpenVINO; its row in the manifest, and facts.

    Without ``full`` it is the ONNX graph with its operators as they are, else an IR, whose number of threads fits the
    work, and with ``tune_seconds`` the precision of what is float in an INT8 graph.

    Raises:
        VlmEdgeError: OpenVINO can't read the graph.
    """
    model = load_graph(job.graph)
    row, facts = job.write_slim(model, job.scratch if job.full else job.out, smallest_shared=SMALLEST_SHARED)
    if not job.full:
        return row, facts
    slim = job.scratch / row.file
    xml = job.out / slim.with_suffix(".xml").name
    write_ir(slim, xml, half_weights=job.half_weights)
    for path in job.scratch.glob(f"{row.file}*"):
        path.unlink()
    facts |= job.threads_worth()
    row = row.model_copy(update={"file": xml.name, "threads": facts["threads"]})
    if job.tune_seconds and job.integer:
        row, facts["tuned"] = tuned_row(job, xml, row)
    return row, facts


def tuned_row(job: CompileJob, path: Path, row: Component) -> tuple[Component, dict[str, Any]]:
    """An INT8 component's row, with bfloat16 for what is float in it where this CPU has it, it is faster and it passes
    the check of engines; and facts."""
    if not computes_bfloat16():
        return row, {"float_layers": "f32", "reason": "this CPU has no bfloat16 products"}
    plain, mixed = (OpenVinoEngine(path, row, threads=1, options=options) for options in ({}, BFLOAT16))
    try:
        job.check(mixed)
    except VlmEdgeError as error:
        return row, {"float_layers": "f32", "reason": f"with bf16: {error.message}"}
    slow, fast = race((plain, mixed), job.reference.single_feeds())
    if fast > slow * (1 - MARGIN):
        return row, {"float_layers": "f32", "reason": f"with bf16 it takes {fast / slow:.3f} times as long"}
    found = {"float_layers": "bf16", "faster_than_untuned": round(slow / fast, 3)}
    return row.model_copy(update={"options": {**row.options, **BFLOAT16}}), found


def transpose_in_products(model: Any) -> None:
    """Write attention's q k^T as a product that transposes k itself: OpenVINO's attention kernel takes in the Transpose
    that then is left, (B, S, N, D) to (B, N, S, D), and not the one that makes k^T at once."""
    from openvino import opset13

    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul" or product.get_attributes()["transpose_b"]:
            continue
        keys = product.input_value(1).get_node()
        if keys.get_type_name() != "Transpose":
            continue
        order = keys.input_value(1).get_node()
        if order.get_type_name() != "Constant" or order.get_data().tolist() != [0, 2, 3, 1]:
            continue
        by_head = opset13.transpose(keys.input_value(0), opset13.constant(np.array([0, 2, 1, 3], np.int64)))
        transposed = product.get_attributes()["transpose_a"]
        product.output(0).replace(opset13.matmul(product.input_value(0), by_head, transposed, True).output(0))
    model.validate_nodes_and_infer_types()


def write_ir(onnx_path: Path, xml_path: Path, *, half_weights: bool = False) -> None:
    """Convert an ONNX file to OpenVINO's IR: ``xml_path`` and the weights beside it, at the graph's own precision.

    With ``half_weights`` float32 constants are stored as float16; OpenVINO folds the graph's own Casts of such.

    What OpenVINO would compute of constants at every load is computed now: half the operators, and half the XML.
    (``ov.convert_model`` does the same, and sends usage statistics.)

    Raises:
        VlmEdgeError: OpenVINO can't read the graph.
    """
    import openvino
    from openvino._offline_transformations import apply_moc_transformations

    try:
        model = openvino.Core().read_model(str(onnx_path))
        apply_moc_transformations(model, cf=True, smart_reshape=False)
        transpose_in_products(model)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise VlmEdgeError(
            f"{onnx_path}: OpenVINO {openvino.__version__} can't read it: {reason}",
            "an operator is onnxruntime's own or not supported: quantize and compile for this target again",
        ) from error
    for index, operator in enumerate(model.get_ordered_ops()):
        operator.set_friendly_name(f"n{index}")  # OpenVINO's own names count on through the process
    openvino.save_model(model, str(xml_path), compress_to_fp16=half_weights)
    xml_path.write_text(re.sub(r">\s+<", "><", xml_path.read_text(encoding="utf-8")), encoding="utf-8")
