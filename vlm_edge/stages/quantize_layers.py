"""What quantization costs, layer by layer: the float and the quantized graph run side by side on held-out inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import onnx
import onnxruntime as ort

from vlm_edge.engines.base import Array, Feed
from vlm_edge.engines.onnxruntime import OnnxRuntimeOptions, session_options
from vlm_edge.numerics.qdq_graph import copied
from vlm_edge.numerics.qdq_layers import QuantizedLayer, quantized_layers
from vlm_edge.numerics.quantization import Agreement

MOST_RUNS = 8
"""Held-out inputs that are looked at: an error by layer needs no more, and it costs a run of each graph."""
AT_ONCE = 16
"""Layers whose tensors are held in memory at the same time."""
LARGEST_BYTES = 2**31 - 2**20
"""A larger graph does not fit into one protobuf message, so it can't be given more outputs."""


def layer_errors(
    floating: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Iterable[Feed], threads: int, *, weights: bool = True
) -> list[dict[str, Any]]:
    """One JSON row for every quantized layer, in the graph's order; none where the graph is too large for it.

    ``weight_sqnr_db`` and ``input_sqnr_db`` are what rounding the weight, and rounding the input, adds by itself;
    ``output`` names its tensor; ``output_sqnr_db`` compares that with the float graph's, with the error of all layers
    before it.

    Args:
        weights: whether the weights are those of the float graph but for rounding, which after smoothing they are not.
    """
    if max(floating.ByteSize(), quantized.ByteSize()) > LARGEST_BYTES:
        return []
    layers = quantized_layers(floating, quantized)
    inputs = {layer.input.tensor for layer in layers if layer.input is not None}
    before = _session(floating, {layer.output for layer in layers}, threads)
    after = _session(quantized, {layer.output for layer in layers} | inputs, threads)
    outputs: dict[str, Agreement] = {layer.output: Agreement() for layer in layers}
    rounded: dict[str, Agreement] = {layer.output: Agreement() for layer in layers}
    for feed in islice(feeds, MOST_RUNS):
        for some in _groups(layers):
            _add(some, before, after, feed, outputs, rounded)
    return [
        {
            "name": layer.name,
            "output": layer.output,
            "operator": layer.operator,
            "weight_sqnr_db": _shown(layer.weight_sqnr_db if weights else None),
            "input_sqnr_db": _shown(rounded[layer.output].sqnr_db if rounded[layer.output].runs else None),
            "output_sqnr_db": _shown(outputs[layer.output].sqnr_db if outputs[layer.output].runs else None),
        }
        for layer in layers
    ]


def _groups(layers: Sequence[QuantizedLayer]) -> Iterator[Sequence[QuantizedLayer]]:
    for start in range(0, len(layers), AT_ONCE):
        yield layers[start : start + AT_ONCE]


def _add(
    layers: Sequence[QuantizedLayer],
    before: ort.InferenceSession,
    after: ort.InferenceSession,
    feed: Feed,
    outputs: dict[str, Agreement],
    rounded: dict[str, Agreement],
) -> None:
    """Take in one run of both graphs, for some of the layers."""
    names = [layer.output for layer in layers]
    inputs = sorted({layer.input.tensor for layer in layers if layer.input is not None})
    wanted = dict(zip(names, before.run(names, dict(feed)), strict=True))
    found: dict[str, Array] = dict(zip([*names, *inputs], after.run([*names, *inputs], dict(feed)), strict=True))
    for layer in layers:
        if wanted[layer.output].size:
            outputs[layer.output].add(wanted[layer.output], found[layer.output])
        if layer.input is not None and found[layer.input.tensor].size:
            rounded[layer.output].add(*layer.input.error(found[layer.input.tensor]))


def _session(model: onnx.ModelProto, tensors: set[str], threads: int) -> ort.InferenceSession:
    """A session that gives inner tensors as outputs, too."""
    shown = copied(model)
    known = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(tensors - known))
    options = session_options(threads, OnnxRuntimeOptions(graph_optimization="basic"))
    return ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _shown(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
