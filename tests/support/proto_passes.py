"""The passes and readings of graphs on protobuf models, which the tests write and look into: from a copy to a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from _outlier_channels import add_outliers
from numpy.typing import NDArray
from tensorrt_placement import Fault, placement_faults

from vlm_edge.backends.lowering import Lowering
from vlm_edge.backends.tensorrt.rules import Violation
from vlm_edge.backends.tensorrt.rules import violations as violations_of
from vlm_edge.graphs.layers import QuantizedLayer
from vlm_edge.graphs.layers import layer_names as names_of_layers
from vlm_edge.graphs.layers import quantized_layers as layers_of
from vlm_edge.graphs.passes.compress_weights import CompressBlocks, CompressTables, CompressWeights
from vlm_edge.graphs.passes.correct_biases import correct_biases as correct_in_place
from vlm_edge.graphs.passes.fuse_silu import FuseSilu
from vlm_edge.graphs.passes.integer_forms import ChangeForms, Form, InFloat, IntegerLayer
from vlm_edge.graphs.passes.integer_forms import integer_layers as layers_with_forms
from vlm_edge.graphs.passes.lower_convolutions import LowerConvolutions
from vlm_edge.graphs.passes.lower_linears import BlockLinears, DynamicLinears, LowerLinears
from vlm_edge.graphs.passes.openvino_masks import ChooseMasks, FloatConcatenations
from vlm_edge.graphs.passes.place_pairs import PlaceConvolutions, PlaceLinears, SetRanges
from vlm_edge.graphs.passes.prepare import FoldTransposedConstants, NameNodes
from vlm_edge.graphs.passes.retarget import RetargetActivations, SymmetricActivations
from vlm_edge.graphs.passes.slim import ClearNotes, Slim
from vlm_edge.graphs.passes.smooth import smooth as smooth_in_place
from vlm_edge.graphs.passes.tensorrt_form import TensorRtForm
from vlm_edge.graphs.report import QuantizedOps
from vlm_edge.graphs.report import quantized_ops as ops_of
from vlm_edge.quantization.calibration import Calibration, Feeds
from vlm_edge.quantization.calibration import collect as collect_of
from vlm_edge.quantization.sensitivity import SwitchedGraph as Switched
from vlm_edge.quantization.static import StaticSettings
from vlm_edge.quantization.static import static_graph as static_of
from vlm_edge.quantizers.ranges import Range
from vlm_edge.stages.quantize_attempt import quantize_graph as quantize
from vlm_edge.stages.quantize_layers import layer_errors as errors_of

Model = onnx.ModelProto


def copied(model: Model) -> Model:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def graph_of(model: Model) -> ir.Model:
    """A copy for a pass, which shares nothing with ``model``."""
    return ir.from_proto(copied(model))


def changed(model: Model, *passes: ir.passes.InPlacePass) -> Model:
    graph = graph_of(model)
    for each in passes:
        each(graph)
    return ir.to_proto(graph)


def fuse_silu(model: Model) -> Model:
    return changed(model, FuseSilu())


def lower_linears(model: Model) -> Model:
    return changed(model, LowerLinears())


def dynamic_linears(model: Model, *, weight_bits: int = 8, left_out: frozenset[str] = frozenset()) -> Model:
    return changed(model, DynamicLinears(weight_bits, left_out))


def block_linears(model: Model, *, bits: int, largest_block: int, left_out: frozenset[str] = frozenset()) -> Model:
    return changed(model, BlockLinears(bits, largest_block, left_out))


def lower_convolutions(model: Model) -> Model:
    return changed(model, LowerConvolutions())


def place_linears(model: Model, *, weight_bits: int, left_out: frozenset[str] = frozenset()) -> Model:
    return changed(model, PlaceLinears(weight_bits, left_out))


def place_convolutions(
    model: Model, *, weight_bits: int, outputs: bool, left_out: frozenset[str] = frozenset()
) -> Model:
    return changed(model, PlaceConvolutions(weight_bits, outputs, left_out))


def with_ranges(model: Model, ranges: Mapping[str, Range], *, symmetric: bool) -> Model:
    return changed(model, SetRanges(ranges, symmetric))


def retarget_activations(model: Model, *, signed: bool) -> Model:
    return changed(model, RetargetActivations(signed))


def symmetric_activations(model: Model) -> Model:
    return changed(model, SymmetricActivations())


def tensorrt_form(model: Model) -> Model:
    return changed(model, TensorRtForm())


def compress_weights(model: Model, *, decompression: Any, left_out: frozenset[str] = frozenset()) -> Model:
    return changed(model, CompressWeights(decompression, left_out))


def compress_blocks(model: Model, *, block_size: int, left_out: frozenset[str] = frozenset()) -> Model:
    return changed(model, CompressBlocks(block_size, left_out))


def compress_tables(model: Model, *, decompression: Any) -> Model:
    return changed(model, CompressTables(decompression))


def float_concatenations(model: Model) -> Model:
    return changed(model, FloatConcatenations())


def chosen_masks(model: Model) -> Model:
    return changed(model, ChooseMasks())


def fold_transposed_constants(model: Model) -> Model:
    return changed(model, FoldTransposedConstants())


def with_node_names(model: Model) -> Model:
    return changed(model, NameNodes())


def without_notes(model: Model) -> Model:
    return changed(model, ClearNotes())


def slim(model: Model, *, smallest_shared: int = 0) -> Model:
    return changed(model, Slim(smallest_shared=smallest_shared))


def with_forms(model: Model, forms: Mapping[str, Form]) -> Model:
    return changed(model, ChangeForms(forms))


def in_float(model: Model) -> Model:
    return changed(model, InFloat())


def integer_layers(model: Model) -> list[IntegerLayer]:
    return layers_with_forms(graph_of(model))


def with_outliers(model: Model, *, channels: int = 4, factor: float = 64.0) -> tuple[Model, int]:
    graph = graph_of(model)
    norms = add_outliers(graph, channels=channels, factor=factor)
    return ir.to_proto(graph), norms


def smooth(model: Model, largest: Mapping[str, NDArray[np.float32]]) -> tuple[Model, frozenset[str]]:
    graph = graph_of(model)
    scaled = smooth_in_place(graph, largest)
    return ir.to_proto(graph), scaled


def correct_biases(floating: Model, quantized: Model, means: Any, held_out: Any) -> tuple[Model, list[str]]:
    graph = graph_of(quantized)
    nodes = correct_in_place(graph_of(floating), graph, means, held_out)
    return ir.to_proto(graph), nodes


def collect(model: Model, feeds: Feeds, tensors: Sequence[str], channels: frozenset[str], threads: int) -> Any:
    return collect_of(graph_of(model), feeds, tensors, channels, threads)


def quantized_ops(model: Model) -> QuantizedOps:
    return ops_of(graph_of(model))


def layer_names(model: Model) -> dict[str, str]:
    return names_of_layers(graph_of(model))


def quantized_layers(floating: Model, quantized: Model) -> list[QuantizedLayer]:
    return layers_of(graph_of(floating), graph_of(quantized))


def layer_errors(floating: Model, quantized: Model, feeds: Any, threads: int) -> list[dict[str, Any]]:
    return errors_of(graph_of(floating), graph_of(quantized), feeds, threads)


def violations(model: Model) -> list[Violation]:
    return violations_of(graph_of(model))


def misplaced(model: Model) -> list[Fault]:
    return list(placement_faults(graph_of(model).graph))


def lowered(model: Model, scheme: str, lowering: Lowering, left_out: frozenset[str] = frozenset()) -> Model:
    return ir.to_proto(lowering.lower(graph_of(model), scheme, left_out))


def quantize_graph(
    model: Model, scheme: str, feeds: Any, lowering: Lowering, *, settings: StaticSettings | None = None
) -> Model:
    return ir.to_proto(quantize(graph_of(model), scheme, feeds, lowering, settings=settings))


class StaticGraph:
    """Of protobuf models; see :class:`vlm_edge.quantization.static.StaticGraph`."""

    def __init__(self, floating: Model, quantized: Model, corrected: tuple[str, ...]) -> None:
        self.floating, self.quantized, self.corrected = floating, quantized, corrected


def static_graph(
    model: Model, calibration: Calibration, held_out: Feeds, lowering: Lowering, settings: StaticSettings
) -> StaticGraph:
    found = static_of(graph_of(model), calibration, held_out, lowering, settings)
    return StaticGraph(ir.to_proto(found.floating), ir.to_proto(found.quantized), found.corrected)


class SwitchedGraph(Switched):
    """Of protobuf models; see :class:`vlm_edge.quantization.sensitivity.SwitchedGraph`."""

    def __init__(self, floating: Model, quantized: Model, threads: int, *, outputs: bool = False) -> None:
        super().__init__(graph_of(floating), graph_of(quantized), threads, outputs=outputs)
