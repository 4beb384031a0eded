"""Place Q/DQ pairs in a float graph where NNCF puts them for a transformer."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs.edit import Editor, attribute, constant, maker, remove_unused, tensor_of
from vlm_edge.quantization.calibration import Feeds
from vlm_edge.quantizers.affine import quantize_weight


def place_pairs(model: ir.Model, feeds: Feeds, left_out: frozenset[str]) -> ir.Model:
    """Q/DQ pairs where NNCF puts them for a transformer, and int8 weights by channel.

    Ranges are those of the first input alone, and stand for nothing: they are to be replaced. Neither NNCF's own
    estimators nor its corrections are used (docs/decisions.md says what they gave).

    Args:
        model: float32, every node named.
        feeds: at least one run.
        left_out: names of nodes that stay float.

    Returns:
        The Q/DQ graph as NNCF writes it: signed activations, weights as int8 constants with DequantizeLinear.

    Raises:
        VlmEdgeError: there is no run, or NNCF can't quantize the graph.
    """
    if not len(feeds):
        raise VlmEdgeError("quantize: no calibration input", "give the data set a calibration split with samples")
    with _quiet():
        import nncf
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            AdvancedSmoothQuantParameters,
            OverflowFix,
        )
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        advanced = AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.DISABLE,
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1.0, convolution=-1.0),
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            disable_bias_correction=True,
        )
        try:
            quantized: onnx.ModelProto = nncf.quantize(
                ir.to_proto(ir.external_data.load_to_model(model)),
                nncf.Dataset([next(iter(feeds))]),
                subset_size=1,
                preset=nncf.QuantizationPreset.PERFORMANCE,
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=sorted(left_out)) if left_out else None,
                advanced_parameters=advanced,
            )
            placed: ir.Model = ir.from_proto(quantized)
            return placed
        except (nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as error:
            raise VlmEdgeError(
                f"quantize: NNCF {nncf.__version__}: {error}", "use int8-dynamic or int8-weights for this component"
            ) from error


def structure_of(model: ir.Model) -> tuple[Any, ...]:
    """Nodes and the computed values that they read and write: equal for graphs that differ in constants alone."""
    return tuple(
        (
            node.name,
            node.op_type,
            tuple(None if value is None or tensor_of(value) is not None else value.name for value in node.inputs),
            tuple(value.name for value in node.outputs),
        )
        for node in model.graph
    )


def with_constants_of(floating: ir.Model, placed: ir.Model) -> ir.Model:
    """``placed``, changed in place, with the constants of a float graph of the same structure."""
    originals, editor = {node.name: node for node in floating.graph}, Editor(placed.graph)
    for node in list(placed.graph):
        original = originals.get(node.name)
        for position, value in enumerate(() if original is None else original.inputs):
            numbers, reader, place = constant(value), node, position
            if value is None or numbers is None:
                continue
            restore = maker(node.inputs[position], "DequantizeLinear")
            if restore is not None and (quantize := maker(restore.inputs[0], "QuantizeLinear")) is not None:
                reader, place = quantize, 0
            elif restore is not None:
                _set_weight(editor, restore, str(value.name), numbers)
                continue
            known = constant(reader.inputs[place])
            if known is None or not np.array_equal(numbers, known):
                reader.replace_input_with(place, editor.constant(str(value.name), numbers))
    remove_unused(placed)
    return placed


def _set_weight(editor: Editor, restore: ir.Node, name: str, weight: NDArray[np.float32]) -> None:
    """Let a DequantizeLinear restore this weight, by channel or by tensor as before."""
    before = constant(restore.inputs[1])
    assert before is not None
    if before.size == 1:
        levels, scales = quantize_weight(weight.reshape(1, -1), 0)
    else:
        levels, scales = quantize_weight(weight, attribute(restore, "axis", 1))
    new = levels.reshape(weight.shape), scales.reshape(before.shape)
    for position, (part, array) in enumerate(zip(("int8", "scale"), new, strict=True)):
        restore.replace_input_with(position, editor.constant(f"{name}_{part}", array))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF writes its log and its progress bars to stdout, which belongs to results, and reports its use to its
    makers, which is not ours to decide: it sends nothing where this variable is set when it is imported."""
    os.environ.setdefault("NNCF_CI", "1")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import nncf

        nncf.set_log_level(logging.ERROR)
        yield
