"""Calibration with NNCF: a float ONNX graph and its true inputs -> a Q/DQ graph."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import onnx
from numpy.typing import NDArray

from vlm_edge.errors import VlmEdgeError
from vlm_edge.numerics.qdq_graph import Graph
from vlm_edge.numerics.qdq_lower import find_linears
from vlm_edge.numerics.quant_forms import QuantForm

Feed = Mapping[str, NDArray[Any]]
SMOOTHING = 0.95
"""SmoothQuant's alpha: how much of the activations' range moves into the weights (NNCF's default for transformers)."""


class Feeds(Protocol):
    """A component's inputs, run by run; can be gone through again and again, always in the same order."""

    def __iter__(self) -> Iterator[Feed]: ...

    def __len__(self) -> int: ...


def calibrate(model: onnx.ModelProto, feeds: Feeds, form: QuantForm, *, smooth: bool) -> onnx.ModelProto:
    """Quantizer ranges from ``feeds``, int8 weights by channel, and biases corrected for the quantization's mean error.

    Ranges hold every value seen. NNCF's own choice, the mean over the samples of each one's least and greatest value,
    clips half of the samples: 10 to 15 dB worse on the reference model.

    Args:
        model: float32, every node named, all weights inside (no external data).
        feeds: at least one run.
        form: for ``linears_only``, all other operators are left alone.
        smooth: apply SmoothQuant (Xiao et al. 2022, arXiv:2211.10438); leaves a Mul before each group of layers.

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

        alpha = SMOOTHING if smooth else -1.0
        advanced = AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if form.weight_bits < 8 else OverflowFix.DISABLE,
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=alpha, convolution=-1.0),
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        )
        try:
            return nncf.quantize(
                model,
                nncf.Dataset(feeds),
                subset_size=len(feeds),
                preset=nncf.QuantizationPreset.PERFORMANCE if form.symmetric else nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,
                fast_bias_correction=True,
                ignored_scope=nncf.IgnoredScope(names=_left_alone(model)) if form.linears_only else None,
                advanced_parameters=advanced,
            )
        except (nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as error:
            raise VlmEdgeError(
                f"quantize: NNCF {nncf.__version__}: {error}", "use int8-dynamic or int8-weights for this component"
            ) from error


def _left_alone(model: onnx.ModelProto) -> Sequence[str]:
    """Names of all nodes that are no linear layer."""
    linears = {linear.node.name for linear in find_linears(Graph(model))}
    return [node.name for node in model.graph.node if node.name not in linears]


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
