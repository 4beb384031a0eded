"""Quantization noise by layer: the float and the quantized graph run side by side on held-out inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

import onnx_ir as ir

from vlm_edge.backends.base import Feed
from vlm_edge.core.measurement import Measurement
from vlm_edge.graphs.chain import listening
from vlm_edge.graphs.layers import QuantizedLayer, quantized_layers
from vlm_edge.quantization.sensitivity import Sensitivity
from vlm_edge.quantizers.affine import Agreement
from vlm_edge.stages.quantize_attempt import Attempt

MOST_RUNS = 8
"""Held-out inputs that are looked at: an error by layer needs no more, and it costs a run of each graph."""


def layer_rows(
    floating: ir.Model,
    attempt: Attempt,
    feeds: Iterable[Feed],
    threads: int,
    ranked: Sequence[Sensitivity],
    drops: Mapping[str, Measurement],
) -> list[dict[str, Any]]:
    """:func:`layer_errors` of an attempt, with what each layer alone costs at the outputs, and of the task's metric."""
    rows = layer_errors(floating, attempt.graph, feeds, threads, weights=attempt.scheme != "int8-smooth")
    sensitivities = {output: each for each in ranked for output in each.layer.outputs}
    for row in rows:
        each = sensitivities.get(row.pop("output"))
        row["sensitivity_db"] = None if each is None else round(each.sqnr_db, 2)
        if each is not None and each.layer.node in drops:
            row["sensitivity_drop_pt"] = round(drops[each.layer.node].value, 4)
    return rows


def sensitivity_rows(
    ranked: Sequence[Sensitivity], names: Mapping[str, str], left_out: Collection[str], drops: Mapping[str, Measurement]
) -> list[dict[str, Any]]:
    """One JSON row for every layer that was ranked: by its loss of the task's metric where it was measured, and noise.

    Args:
        names: node name -> the layer's name.
        left_out: names of the nodes that are float in the end.
        drops: node name -> what the task's metric loses when this layer alone is quantized.
    """
    rows = []
    for each in ranked:
        node, drop = each.layer.node, drops.get(each.layer.node)
        row: dict[str, Any] = {"name": names[node], "operator": each.layer.operator, "sqnr_db": round(each.sqnr_db, 2)}
        if drop is not None:
            row["drop_pt"] = interval_of(drop)
        rows.append(row | {"float": node in left_out})
    return sorted(rows, key=lambda row: (-row["drop_pt"]["value"] if "drop_pt" in row else 0.0, row["sqnr_db"]))


def interval_of(found: Measurement) -> dict[str, float]:
    """A measurement's numbers as JSON."""
    return {"low": round(found.low, 4), "value": round(found.value, 4), "high": round(found.high, 4)}


def layer_errors(
    floating: ir.Model, quantized: ir.Model, feeds: Iterable[Feed], threads: int, *, weights: bool = True
) -> list[dict[str, Any]]:
    """One JSON row for every quantized layer, in the graph's order.

    ``weight_sqnr_db`` and ``input_sqnr_db`` are what rounding the weight, and rounding the input, adds by itself;
    ``output`` names its tensor; ``output_sqnr_db`` compares that with the float graph's, with the error of all layers
    before it. Where an integer kernel writes levels, its output is what they stand for, with their rounding; a layer
    that reads them directly has the rounding of the float graph's values as its input's.

    Args:
        weights: whether the weights are those of the float graph but for rounding, which after smoothing they are not.
    """
    layers = quantized_layers(floating, quantized)
    given = {str(value.name) for value in floating.graph.inputs}
    chains = [
        listening(model, sorted(_tensors(layers, in_float_graph) - given), threads)
        for model, in_float_graph in ((floating, True), (quantized, False))
    ]
    outputs: dict[str, Agreement] = {layer.output: Agreement() for layer in layers}
    rounded: dict[str, Agreement] = {layer.output: Agreement() for layer in layers}
    for feed in islice(feeds, MOST_RUNS if layers else 0):
        waiting: Sequence[QuantizedLayer] = layers
        wanted, found = dict(feed), dict(feed)
        for parts in zip_longest(*(chain.run_parts(feed) for chain in chains), fillvalue={}):
            wanted, found = wanted | parts[0], found | parts[1]
            later = []
            for layer in waiting:
                if _tensors([layer], True) <= wanted.keys() and _tensors([layer], False) <= found.keys():
                    _add(layer, wanted, found, outputs[layer.output], rounded[layer.output])
                else:
                    later.append(layer)
            waiting, (needed, written) = later, (_tensors(later, True), _tensors(later, False))
            wanted = {name: values for name, values in wanted.items() if name in needed}
            found = {name: values for name, values in found.items() if name in written}
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


def _add(layer: QuantizedLayer, wanted: Feed, found: Feed, output: Agreement, rounded: Agreement) -> None:
    """Take in one run of a layer: values of the float graph, and of the quantized one."""
    if wanted[layer.output].size:
        output.add(wanted[layer.output], layer.result(found[layer.written]))
    if layer.input is not None:
        values = (wanted if layer.input.in_float_graph else found)[layer.input.tensor]
        if values.size:
            rounded.add(*layer.input.error(values))


def _tensors(layers: Iterable[QuantizedLayer], in_float_graph: bool) -> set[str]:
    """Names of the tensors to look at in one of the two graphs."""
    outputs = {layer.output if in_float_graph else layer.written for layer in layers}
    inputs = [layer.input for layer in layers if layer.input is not None]
    return outputs | {each.tensor for each in inputs if each.in_float_graph == in_float_graph}


def _shown(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
