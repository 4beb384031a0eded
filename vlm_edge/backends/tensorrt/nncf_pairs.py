"""Place Q/DQ pairs in a float graph where NNCF puts them for a transformer."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from vlm_edge.errors import VlmEdgeError
from vlm_edge.quantization.calibration import Feeds


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
