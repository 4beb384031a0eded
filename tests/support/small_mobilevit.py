"""A MobileViT in small as a hand-written float graph: inverted residual, two convolutions in a row, a transformer.

What integer convolutions and layers meet in the real one is in it: the image's three channels, a depthwise convolution,
SiLU, a convolution that another reads directly, tokens made of pixels and back, attention, and a skip connection.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

SIZE = 16
CLASSES = 10

_TEXT = f"""<ir_version: 10, opset_import: ["" : 20]>
mobilevit (float[images, 3, {SIZE}, {SIZE}] pixel_values) => (float[images, {CLASSES}] image_embeds) {{
  [stem] c0 = Conv <pads = [1, 1, 1, 1]> (pixel_values, stem_w, stem_b)
  g0 = Sigmoid (c0)
  s0 = Mul (c0, g0)
  [depthwise] c1 = Conv <pads = [1, 1, 1, 1], group = 64, strides = [2, 2]> (s0, depthwise_w, depthwise_b)
  g1 = Sigmoid (c1)
  s1 = Mul (c1, g1)
  [project] c2 = Conv (s1, project_w, project_b)
  [local] c3 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (c2, local_w, local_b)
  g3 = Sigmoid (c3)
  s3 = Mul (g3, c3)
  [enter] c4 = Conv (s3, enter_w)
  pixels = Reshape (c4, columns)
  tokens = Transpose <perm = [0, 2, 1]> (pixels)
  n0 = LayerNormalization (tokens, one, zero)
  [query] q = MatMul (n0, query_w)
  qb = Add (q, query_b)
  [key] k = MatMul (n0, key_w)
  [value] v = MatMul (n0, value_w)
  q4 = Reshape (qb, by_head)
  k4 = Reshape (k, by_head)
  v4 = Reshape (v, by_head)
  qh = Transpose <perm = [0, 2, 1, 3]> (q4)
  kh = Transpose <perm = [0, 2, 3, 1]> (k4)
  vh = Transpose <perm = [0, 2, 1, 3]> (v4)
  scores = MatMul (qh, kh)
  scaled = Mul (scores, root)
  weights = Softmax <axis = -1> (scaled)
  mixed = MatMul (weights, vh)
  together = Transpose <perm = [0, 2, 1, 3]> (mixed)
  context = Reshape (together, by_row)
  [out] o = MatMul (context, out_w)
  r0 = Add (tokens, o)
  n1 = LayerNormalization (r0, one, zero)
  [up] u = MatMul (n1, up_w)
  ub = Add (u, up_b)
  gu = Sigmoid (ub)
  su = Mul (ub, gu)
  [down] d = MatMul (su, down_w)
  r1 = Add (r0, d)
  turned = Transpose <perm = [0, 2, 1]> (r1)
  map = Reshape (turned, square)
  [leave] c5 = Conv (map, leave_w, leave_b)
  both = Concat <axis = 1> (s3, c5)
  [fuse] c6 = Conv <pads = [1, 1, 1, 1]> (both, fuse_w, fuse_b)
  g6 = Sigmoid (c6)
  s6 = Mul (c6, g6)
  pooled = GlobalAveragePool (s6)
  flat = Flatten (pooled)
  [classifier] image_embeds = Gemm <transB = 1> (flat, classifier_w, classifier_b)
}}"""

_SHAPES: dict[str, tuple[int, ...]] = {
    "stem": (64, 3, 3, 3),
    "depthwise": (64, 1, 3, 3),
    "project": (64, 64, 1, 1),
    "local": (64, 64, 3, 3),
    "enter": (64, 64, 1, 1),
    "query": (64, 64),
    "key": (64, 64),
    "value": (64, 64),
    "out": (64, 64),
    "up": (64, 128),
    "down": (128, 64),
    "leave": (64, 64, 1, 1),
    "fuse": (64, 128, 3, 3),
    "classifier": (CLASSES, 64),
}

INTEGER_CONVOLUTIONS = ("project", "local", "enter", "leave", "fuse")
"""Names of the convolutions that add up enough products."""


@cache
def _bytes() -> bytes:
    generator = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {
        "one": np.ones(64, np.float32),
        "zero": np.zeros(64, np.float32),
        "columns": np.array([0, 64, -1]),
        "by_head": np.array([0, 0, 2, 32]),
        "by_row": np.array([0, 0, 64]),
        "square": np.array([0, 64, 4, 4]),
        "root": np.array(1 / np.sqrt(32), np.float32),
    }
    for name, shape in _SHAPES.items():
        added = int(np.prod(shape[1:])) if len(shape) == 4 or name == "classifier" else shape[0]
        constants[f"{name}_w"] = generator.normal(0, np.sqrt(2 / added), shape).astype(np.float32)
        channels = shape[1] if name in ("query", "up") else shape[0]
        constants[f"{name}_b"] = generator.normal(0, 0.1, channels).astype(np.float32)
    model = parser.parse_model(_TEXT)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items() if name in used
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def small_mobilevit() -> onnx.ModelProto:
    """Float32, (images, 3, 16, 16) -> (images, 10); seeded weights that keep activations healthy."""
    return onnx.ModelProto.FromString(_bytes())


def pictures(count: int, batch: int = 1, seed: int = 0) -> list[dict[str, NDArray[np.float32]]]:
    """Feeds of smooth random pictures: patches of 4 x 4 pixels, with some noise."""
    generator = np.random.default_rng(seed)
    patches = generator.normal(size=(count, batch, 3, 4, 4)).repeat(4, axis=-1).repeat(4, axis=-2)
    noise = generator.normal(0, 0.2, patches.shape)
    return [{"pixel_values": value} for value in (patches + noise).astype(np.float32)]
