"""Why NNCF's fast bias correction is not used: its shift holds more than quantization's error."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from vlm_edge.backends.tensorrt.nncf_pairs import _quiet

CONV = """<ir_version: 10, opset_import: ["" : 20]>
patches (float[images, 3, 8, 8] x) => (float[images, 16, 2, 2] y) {
  patches = Conv <kernel_shape = [4, 4], strides = [4, 4]> (x, weight, bias)
  y = Relu (patches)
}"""


def test_fast_bias_correction_moves_a_convolution_s_bias_by_what_is_no_quantization_error() -> None:
    """The shift is the mean output less the output at the channels' means. Where the mean of a channel differs by place
    within the kernel, these two differ in floating point, too: here nearly all of the shift is that."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(16, 3, 4, 4)).astype(np.float32) / 7
    bias = generator.normal(size=16).astype(np.float32)
    bias += np.sign(bias)
    model: onnx.ModelProto = parser.parse_model(CONV)
    model.graph.initializer.extend([numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")])
    model.graph.node[0].name = "conv"
    images = generator.normal(size=(8, 3, 8, 8)).astype(np.float32)
    shift = _nncf_bias(model, images) - bias
    columns = images.reshape(8, 3, 2, 4, 2, 4).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 48)
    outputs = columns @ weight.reshape(16, 48).T
    in_floating_point = outputs.mean(axis=0) - images.mean(axis=(0, 2, 3)) @ weight.sum(axis=(2, 3)).T
    assert np.abs(in_floating_point).max() > 0.1
    np.testing.assert_allclose(shift, in_floating_point, atol=0.03)
    rounded = np.abs(weight).max(axis=(1, 2, 3)) / 127  # a step; a weight's error is half of it at most
    assert np.abs(columns.mean(axis=0)).sum() * rounded.max() / 2 < 0.1


def _nncf_bias(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[Any]:
    with _quiet():
        import nncf

        quantized = nncf.quantize(
            model,
            nncf.Dataset([{"x": image[None]} for image in images]),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            fast_bias_correction=True,
        )
    constants = {each.name: numpy_helper.to_array(each) for each in quantized.graph.initializer}
    (conv,) = (node for node in quantized.graph.node if node.op_type == "Conv")
    return constants[conv.input[2]]
