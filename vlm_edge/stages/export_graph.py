"""One component as a checked ONNX file: torch.onnx's dynamo exporter, then names and metadata made stable.

opset 20 is the first with Gelu as one operator (LayerNormalization is one since 17). Attention is left spelled out:
what fuses it (onnxruntime, OpenVINO, quantizers) looks for MatMul, Softmax, MatMul.
"""

from __future__ import annotations

import ast
import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    TopologicalSortPass,
)

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import ComponentExport
from vlm_edge.graphs.files import graph_bytes, load_graph, save_graph
from vlm_edge.processing.manifest import Component, TensorSpec

_KNOWN_WARNINGS = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),  # torch 2.13 on its own pytree
    (
        UserWarning,
        r"# The axis name: (.+) will not be used, since it shares .* another axis: \1\.$",
    ),  # one name, one size
)
_NOISY_LOGGER = "torch.onnx._internal.exporter._registration"
"""Says for every operator of torchvision that torchvision isn't there."""
_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64"}


def export_component(name: str, component: ComponentExport, folder: Path, opset: int) -> Component:
    """Write ``folder/NAME.onnx`` (and ``NAME.onnx.data`` above 64 MB) and give its entry for the manifest.

    Raises:
        VlmEdgeError: the exporter or the ONNX checker refuses the component; its first line is quoted.
    """
    path = folder / f"{name}.onnx"
    with _quiet_exporter(), torch.no_grad():
        try:
            program = torch.onnx.export(
                component.module,
                tuple(component.example.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(component.example),
                output_names=list(component.output_shapes),
                dynamic_shapes=_dynamic_shapes(component),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise VlmEdgeError(
                f"{name}: torch.onnx can't export it at opset {opset}: {str(error).strip().splitlines()[0]}",
                "run with the versions in constraints.txt; a model of a new family may need its own component module",
            ) from error
    assert program is not None
    model = program.model
    _tidy(model, component)
    save_graph(model, path)
    for value in model.graph.initializers.values():
        value.const_value = None  # onnxscript's rewriter keeps the last graph that it saw: let it be without weights
    check_graph(path)
    return Component(
        file=path.name, inputs=_tensor_specs(model.graph.inputs), outputs=_tensor_specs(model.graph.outputs)
    )


def check_graph(path: Path) -> None:
    """onnx.checker with strict shape inference.

    Raises:
        VlmEdgeError: the file is no valid ONNX model.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise VlmEdgeError(f"{path.name}: not a valid ONNX model: {reason}", "report it: this is a fault") from error


def graph_facts(path: Path) -> dict[str, int]:
    """Number of nodes, and bytes on disk with external data."""
    return {"nodes": len(load_graph(path).graph), "size_bytes": graph_bytes(path)}


def _dynamic_shapes(component: ComponentExport) -> tuple[object, ...]:
    """torch.export's ``dynamic_shapes``: the axes' names by argument; those of ``*caches`` nest in a tuple."""
    axes = [dict(component.dynamic.get(name, {})) for name in component.example]
    kinds = [parameter.kind for parameter in inspect.signature(component.module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(axes)
    plain = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:plain], tuple(axes[plain:]))


def _tidy(model: ir.Model, component: ComponentExport) -> None:
    """Every weight once, outputs under the names of their dimensions, and no stack traces or doc strings."""
    _name_transposed_weights(model)
    Sequential(
        RemoveUnusedNodesPass(), DeduplicateInitializersPass(), TopologicalSortPass(), ClearMetadataAndDocStringPass()
    )(model)
    model.metadata_props.clear()
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for value, shape in zip(model.graph.outputs, component.output_shapes.values(), strict=True):
        value.shape = ir.Shape(shape)


def _name_transposed_weights(model: ir.Model) -> None:
    """A weight that the exporter has transposed gets its module's name back: ``lm_head.weight_transposed``, not
    ``val_3``. A layer without a bias would be nameless otherwise."""
    named = model.graph.initializers
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        value = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op_type != "MatMul" or len(scopes) < 2 or value is None or not (value.name or "").startswith("val_"):
            continue
        name = f"{scopes[-2]}.weight_transposed"
        if value.name in named and name not in named:
            value.name = name


def _tensor_specs(values: Iterable[ir.Value]) -> dict[str, TensorSpec]:
    """The graph's own word on its inputs or outputs, in order."""
    return {
        str(value.name): TensorSpec.model_validate(
            {
                "dtype": _DTYPES[value.dtype],
                "shape": [size if isinstance(size, int) else str(size.value) for size in value.shape],
            }
        )
        for value in values
        if value.dtype is not None and value.shape is not None
    }


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep back what the exporter says on every run and nobody can act on; any other warning passes."""
    logger = logging.getLogger(_NOISY_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category, message in _KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        logger.setLevel(level)
