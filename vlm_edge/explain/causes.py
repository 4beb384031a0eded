"""Causes of slow INT8 graphs: the table of them, and the findings for one graph.

To add a cause, write a detector (:mod:`vlm_edge.explain.detectors`, or ``kernels``) and an entry here.
Causes are tried in the table's order, root causes first: a node counts for the first one that claims it, so no time is
counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx

from vlm_edge.explain import detectors as detect
from vlm_edge.explain import kernels
from vlm_edge.explain.view import Hit, Int8View


@dataclass(frozen=True)
class Cause:
    """One entry: ``name`` for programs, ``title`` and ``why`` for people, ``remedy`` is the next step.

    consequence: it is reported even where other causes claim all of its nodes, with the names of those causes.
    """

    name: str
    title: str
    detector: Callable[[Int8View], Iterable[Hit]]
    why: str
    remedy: str
    consequence: bool = False


CAUSES: tuple[Cause, ...] = (
    Cause(
        "float16-on-cpu",
        "float16 graph on a CPU",
        kernels.float16_casts,
        "onnxruntime's CPU kernels compute in float32, so values are cast to it and back around nearly every operator",
        "export in float32: float16 is for a GPU target",
    ),
    Cause(
        "blocked-quantization",
        "Q/DQ in blocks (opset 21), which no kernel takes",
        detect.blocked_quantization,
        "onnxruntime fuses Q/DQ with one scale per tensor, weights with one per output channel; weights in blocks of "
        "16 or more become MatMulNBits, which computes in float; nothing else in blocks is fused",
        "quantize per channel: `quantize: {components: {NAME: int8}}`; in other tools turn block_size off",
    ),
    Cause(
        "per-channel-activations",
        "activations with a scale per channel",
        detect.per_channel_activations,
        "integer kernels sum over the channels, so they need one scale and one zero point for all of the data",
        "quantize activations per tensor; SmoothQuant moves differences between channels into the weights",
    ),
    Cause(
        "gemm-fusion",
        "MatMul + Add became Gemm before Q/DQ fusion looked",
        detect.gemm_fusion,
        "onnxruntime turned MatMul and Add into a Gemm with reshapes around it; QGemm takes no float bias, so the Gemm "
        "stays in float, its Q/DQ run, and its weights are dequantized at every run",
        "`vlm-edge quantize` writes such layers as MatMulIntegerToFloat, which no fusion breaks; in other tools "
        "quantize MatMul's output or Gemm's bias (s32) too, e.g. quantize_static after quant_pre_process",
    ),
    Cause(
        "s8-activations",
        "s8 activations on x86",
        detect.signed_activations,
        "x86's VNNI and onnxruntime's kernels multiply u8 data by s8 weights; s8 data is left unfused or run by a slow "
        "kernel",
        "quantize for the target: `target: {isa: x86-vnni}` (or auto) makes `vlm-edge quantize` write u8, exactly and "
        "without new calibration; in other tools activation_type=QUInt8",
    ),
    Cause(
        "requantized-unchanged",
        "values dequantized and quantized again to the same integers",
        detect.requantized_unchanged,
        "onnxruntime moves Q/DQ past Reshape, Transpose and the like when it loads a graph, and leaves pairs there "
        "that change nothing",
        "`vlm-edge compile` times such graphs against float and keeps the faster; in other tools put "
        "DequantizeLinear after the operators that only move elements, right before one that computes in float",
    ),
    Cause(
        "qdq-around-float-op",
        "Q/DQ around a float-only operator",
        detect.float_only_operators,
        "normalization, GELU and the like have no integer kernel: values are quantized and dequantized for nothing; "
        "Sigmoid (SiLU) and Softmax have one that is slower than the float operator",
        "quantize only products: `vlm-edge quantize` leaves Q/DQ only in front of linear layers and around "
        "dense convolutions; in other tools op_types_to_quantize=['MatMul', 'Gemm'] and "
        "OpTypesToExcludeOutputQuantization=['MatMul', 'Gemm']",
    ),
    Cause(
        "partly-quantized",
        "an integer kernel exists, but not every input and output that it needs is quantized",
        detect.partly_quantized,
        "onnxruntime fuses an operator with the Q/DQ around it only when all inputs (and, but for MatMul, the output) "
        "have them, so it computes in float between Q/DQ that run",
        "leave the operator in float (exclude it from quantization) or quantize the missing input or output; "
        "`vlm-edge quantize` removes such pairs",
    ),
    Cause(
        "weight-dequantized",
        "weights dequantized at every run",
        detect.weights_dequantized,
        "onnxruntime never folds DequantizeLinear of a constant; one that is not fused turns int8 weights into "
        "float again in every run",
        "`quantize: {components: {NAME: int8-weights}}` stores them as Cast and Mul, which are folded when the session "
        "loads; or quantize the data too (int8), so that the weights stay integers",
        consequence=True,
    ),
    Cause(
        "integer-convolution",
        "convolutions that lose in INT8",
        kernels.integer_convolutions,
        "ConvInteger has no fast kernel; QLinearConv gains nothing where an output sums few products (the first layer)",
        "leave them in float: `vlm-edge quantize` does; in other tools nodes_to_exclude, and no Conv in "
        "quantize_dynamic",
    ),
    Cause(
        "layout-transposes",
        "transposes around QLinearConv",
        kernels.layout_transposes,
        "QLinearConv runs channels last, all other operators channels first",
        "keep convolutions that follow each other all in INT8, or all in float: `vlm-edge compile` times both, with "
        "their transposes, and keeps the faster",
    ),
    Cause(
        "smoothing-not-folded",
        "SmoothQuant's multiplications left in the graph",
        kernels.unfolded_smoothing,
        "the vector belongs into the weights of the LayerNormalization before it",
        "`vlm-edge quantize` folds it; in NNCF turn SmoothQuant off where the accuracy allows it",
    ),
    Cause(
        "asymmetric-weights",
        "asymmetric weights",
        kernels.asymmetric_weights,
        "u8 weights miss the fastest x86 kernel, and a zero point costs one more sum over the data",
        "symmetric s8 weights: `vlm-edge quantize`; in other tools weight_type=QInt8, WeightSymmetric",
    ),
    Cause(
        "dynamic-quantization",
        "ranges of the data recomputed at every run",
        kernels.dynamic_ranges,
        "dynamic quantization searches the data for its range before it multiplies",
        "calibrate: `quantize: {components: {NAME: int8}}` with the task's data; `vlm-edge compile` then takes them "
        "only where they are faster",
    ),
    Cause(
        "unfused-qdq",
        "Q/DQ that was not fused",
        detect.unfused_pairs,
        "values are quantized and dequantized around operators that run in float",
        "remove the pairs, or exclude their operators from quantization: `vlm-edge quantize` keeps only those in "
        "front of linear layers and around dense convolutions",
    ),
    Cause(
        "float-weights",
        "linear layers in float",
        kernels.float_weights,
        "they multiply float32 weights; integer products are faster here",
        "`quantize: {components: {NAME: int8}}`; run.json and `quantize --json` say why a component fell back to "
        "int8-weights",
    ),
    Cause(
        "saturation-risk",
        "8-bit weights may saturate without VNNI",
        kernels.saturating_weights,
        "without VNNI pairs of u8 x s8 products are added up in 16 bits: wrong results, not slow ones",
        "7-bit weights: `target: {isa: x86}` for `vlm-edge quantize`; in other tools reduce_range=True",
    ),
    Cause(
        "duplicated-weights",
        "equal weights stored more than once",
        kernels.stored_twice,
        "the same tensor is in the file, and in memory, under several names",
        "`vlm-edge compile` stores them once",
    ),
)
"""Root causes before their consequences."""


@dataclass(frozen=True)
class Finding:
    """A cause that holds for a graph.

    nodes: those that count for it; for a consequence also those of other causes. reasons: the number of each.
    cost: the share of the graph's time that the remedy is estimated to save, over nodes that count for no other cause.
    time: the share that all its nodes take. Both are None where nothing was timed.
    counted_in: for a consequence, the number of its nodes that count for each other cause.
    """

    cause: Cause
    nodes: tuple[onnx.NodeProto, ...]
    reasons: Counter[str]
    cost: float | None
    time: float | None
    counted_in: Counter[str]

    @property
    def own(self) -> int:
        """Nodes that count for no other cause."""
        return len(self.nodes) - self.counted_in.total()


def explain_graph(view: Int8View, shares: Mapping[int, float] | None) -> list[Finding]:
    """Every cause that holds, the costliest first; consequences that other causes account for come last.

    Args:
        shares: position of a node in ``view.graph`` -> its share of the run's time; None where nothing was timed, and
            the findings then come in the table's order.
    """
    claimed: dict[int, str] = {}
    found: list[Finding] = []
    positions = {id(node): position for position, node in enumerate(view.graph.nodes)}
    for cause in CAUSES:
        hits = {id(hit.node): hit for hit in reversed(list(cause.detector(view)))}  # a node's first hit counts
        others = Counter(claimed[key] for key in hits if key in claimed)
        if not cause.consequence:
            hits = {key: hit for key, hit in hits.items() if key not in claimed}
            others.clear()
        if hits:
            rows = sorted(hits.items(), key=lambda row: positions.get(row[0], len(positions)))
            times = [shares.get(positions.get(key, -1), 0.0) if shares else 0.0 for key, _ in rows]
            costs = [time * hit.recovers for time, (key, hit) in zip(times, rows, strict=True) if key not in claimed]
            found.append(
                Finding(
                    cause=cause,
                    nodes=tuple(hit.node for _, hit in rows),
                    reasons=Counter(hit.reason for _, hit in rows),
                    cost=None if shares is None else sum(costs),
                    time=None if shares is None else sum(times),
                    counted_in=others,
                )
            )
        claimed |= {key: cause.name for key in hits if key not in claimed}
    return sorted(found, key=lambda finding: (finding.own == 0, -(finding.cost or 0)))
