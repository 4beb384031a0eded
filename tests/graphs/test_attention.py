"""Fused attention equals numpy's attention and the graph that it replaces; what only looks like attention is left."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from proto_passes import changed, graph_of

from vlm_edge.graphs.attention import Attention, find_attentions, fitted, operands
from vlm_edge.graphs.passes.fuse_attention import FuseAttentions
from vlm_edge.graphs.shapes import ShapeSession

B, N, D = 2, 4, 8
WIDTH = N * D

HEADS = """
  q_split = Reshape (q, heads)
  q_heads = Transpose <perm = [0, 2, 1, 3]> (q_split)
  k_split = Reshape (k, heads)
  v_split = Reshape (v, heads)
  v_heads = Transpose <perm = [0, 2, 1, 3]> (v_split)
"""
OUT = """
  context = MatMul (weights, v_heads)
  together = Transpose <perm = [0, 2, 1, 3]> (context)
  out = Reshape (together, merged)
"""
SCORES = {
    "transposed at once": "k_heads = Transpose <perm = [0, 2, 3, 1]> (k_split)\n scores = MatMul (q_heads, k_heads)",
    "transposed twice": """k_first = Transpose <perm = [0, 2, 1, 3]> (k_split)
      k_heads = Transpose <perm = [0, 1, 3, 2]> (k_first)
      scores = MatMul (q_heads, k_heads)""",
}
SCALES = {
    "divided": ("scaled = Div (scores, eight)", 1 / np.sqrt(D)),
    "multiplied": ("scaled = Mul (scores, eighth)", 0.125),
}


def graph(inputs: str, body: str, **constants: object) -> onnx.ModelProto:
    values = {
        "heads": np.array([0, 0, N, D]),
        "merged": np.array([0, 0, WIDTH]),
        "eight": np.float32(np.sqrt(D)),
        "eighth": np.float32(0.125),
        **constants,
    }
    text = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => (float[b, s, w] out) {{ {body} }}'
    model = parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    for name, value in values.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(["out"], feed)[0]


def fused(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> tuple[onnx.ModelProto, list[Attention]]:
    changed = graph_of(model)
    found = find_attentions(changed)
    shapes = ShapeSession(changed, {value.name for match in found for value in operands(match)}).run(feed)
    proven = [match for match in (fitted(match, shapes) for match in found) if match is not None]
    FuseAttentions(proven)(changed)
    return ir.to_proto(changed), proven


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | float = 0.0, scale: float = 1 / np.sqrt(D)
) -> np.ndarray:
    """softmax(scale q k^T + mask) v for every head; q, k, v are (batch, tokens, heads x head_dim)."""

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], N, -1).transpose(0, 2, 1, 3).astype(np.float64)

    scores = split(q) @ split(k).transpose(0, 1, 3, 2) * scale + mask
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    context = weights / weights.sum(axis=-1, keepdims=True) @ split(v)
    return context.transpose(0, 2, 1, 3).reshape(*q.shape[:2], -1)


def tensors(*lengths: int, batch: int = B, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(batch, length, WIDTH)).astype(np.float32) for length in lengths]


THREE = f"float[b, s, {WIDTH}] q, float[b, t, {WIDTH}] k, float[b, t, {WIDTH}] v"


class TestFusion:
    @pytest.mark.parametrize("scores", SCORES)
    @pytest.mark.parametrize("scale", ["divided", "multiplied"])
    def test_without_a_mask(self, scores: str, scale: str) -> None:
        node, factor = SCALES[scale]
        body = f"{HEADS}{SCORES[scores]}\n{node}\nweights = Softmax <axis = -1> (scaled){OUT}"
        model = graph(THREE, body)
        q, k, v = tensors(5, 7, 7)
        feed = {"q": q, "k": k, "v": v}
        result, proven = fused(model, feed)
        assert [node.op_type for node in result.graph.node] == ["Attention"]
        assert proven[0].heads == N
        np.testing.assert_allclose(run(result, feed), attention(q, k, v, scale=factor), atol=2e-6)
        np.testing.assert_allclose(run(result, feed), run(model, feed), atol=2e-6)

    @pytest.mark.parametrize("shape", [(B, 1, 1, 7), (1, 1, 5, 7), (B, 1, 5, 7), (B, N, 5, 7), (5, 7), (1, 7), (7,)])
    @pytest.mark.parametrize("first", [True, False])
    def test_with_a_mask_of_any_shape_that_broadcasts(self, shape: tuple[int, ...], first: bool) -> None:
        added = "masked = Add (mask, scaled)" if first else "masked = Add (scaled, mask)"
        body = f"{HEADS}{SCORES['transposed at once']}\nscaled = Div (scores, eight)\n{added}"
        dims = ", ".join(str(size) for size in shape)
        model = graph(f"{THREE}, float[{dims}] mask", f"{body}\nweights = Softmax <axis = -1> (masked){OUT}")
        q, k, v = tensors(5, 7, 7)
        mask = np.where(np.random.default_rng(1).random(shape) < 0.3, np.float32(-10_000), np.float32(0))
        feed = {"q": q, "k": k, "v": v, "mask": mask}
        result, proven = fused(model, feed)
        assert len(proven) == 1
        np.testing.assert_allclose(run(result, feed), attention(q, k, v, mask), atol=2e-6)

    @settings(max_examples=25, deadline=None)
    @given(batch=st.integers(1, 4), s=st.integers(1, 9), past=st.integers(0, 6))
    def test_fused_once_fits_every_size_with_a_cache_and_a_shared_mask(self, batch: int, s: int, past: int) -> None:
        """As the decoder has it: keys and values by head, past and new ones together, in two attentions in a row."""
        layer = """
          {q}_split = Reshape ({q}, by_head)
          {q}_heads = Transpose <perm = [0, 2, 1, 3]> ({q}_split)
          {q}_keys = Transpose <perm = [0, 1, 3, 2]> (keys)
          {q}_scores = MatMul ({q}_heads, {q}_keys)
          {q}_scaled = Div ({q}_scores, eight)
          {q}_masked = Add ({q}_scaled, mask)
          {q}_weights = Softmax <axis = -1> ({q}_masked)
          {q}_context = MatMul ({q}_weights, values)
          {q}_together = Transpose <perm = [0, 2, 1, 3]> ({q}_context)
          {out} = Reshape ({q}_together, by_row)
        """
        body = f"""
          rows = Shape <start = 0, end = 2> (q)
          by_head = Concat <axis = 0> (rows, minus, last)
          by_row = Concat <axis = 0> (rows, all)
          new_split = Reshape (q, by_head)
          fresh = Transpose <perm = [0, 2, 1, 3]> (new_split)
          keys = Concat <axis = 2> (past, fresh)
          values = Concat <axis = 2> (past, fresh)
          {layer.format(q="q", out="second")}
          {layer.format(q="second", out="out")}
        """
        inputs = f"float[b, s, {WIDTH}] q, float[b, {N}, p, {D}] past, float[b, 1, 1, t] mask"
        parts = {"minus": np.array([-1]), "last": np.array([D]), "all": np.array([WIDTH])}
        model = graph(inputs, body, **parts)

        def feed(batch: int, s: int, past: int) -> dict[str, np.ndarray]:
            generator = np.random.default_rng(batch)
            (q,) = tensors(s, batch=batch)
            cache = generator.normal(size=(batch, N, past, D)).astype(np.float32)
            mask = np.where(generator.random((batch, 1, 1, past + s)) < 0.3, np.float32(-10_000), np.float32(0))
            return {"q": q, "past": cache, "mask": mask}

        result, proven = fused(model, feed(3, 2, 5))
        assert [match.key.by_head for match in proven] == [True, True]
        kinds = [node.op_type for node in result.graph.node]
        assert (kinds.count("Expand"), kinds.count("Attention"), kinds.count("Softmax")) == (1, 2, 0)
        given_feed = feed(batch, s, past)
        np.testing.assert_allclose(run(result, given_feed), run(model, given_feed), atol=5e-6)

    def test_one_projection_of_all_three(self) -> None:
        body = """
          split = Reshape (qkv, parts)
          packed = Transpose <perm = [2, 0, 3, 1, 4]> (split)
          q_heads = Gather <axis = 0> (packed, zero)
          k_heads = Gather <axis = 0> (packed, one)
          v_heads = Gather <axis = 0> (packed, two)
          k_turned = Transpose <perm = [0, 1, 3, 2]> (k_heads)
          scores = MatMul (q_heads, k_turned)
          scaled = Mul (scores, eighth)
          weights = Softmax <axis = -1> (scaled)
        """
        constants = {
            "parts": np.array([0, 0, 3, N, D]),
            **{name: np.array(index) for index, name in enumerate(("zero", "one", "two"))},
        }
        model = graph(f"float[b, s, {3 * WIDTH}] qkv", body + OUT, **constants)
        q, k, v = tensors(5, 5, 5)
        feed = {"qkv": np.concatenate([q, k, v], axis=2)}
        result, _ = fused(model, feed)
        assert [node.op_type for node in result.graph.node] == ["Split", "Attention"]
        np.testing.assert_allclose(run(result, feed), attention(q, k, v, scale=0.125), atol=2e-6)

    def test_the_graph_moves_to_the_operator_set_that_has_it(self) -> None:
        body = f"{HEADS}{SCORES['transposed at once']}\nscaled = Div (scores, eight)\n"
        model = graph(THREE, f"{body}weights = Softmax <axis = -1> (scaled){OUT}")
        q, k, v = tensors(5, 7, 7)
        result, _ = fused(model, {"q": q, "k": k, "v": v})
        assert [(entry.domain, entry.version) for entry in result.opset_import] == [("", 23)]
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        onnx.checker.check_model(result, full_check=True)


class TestLeftAlone:
    BODY = f"{HEADS}{SCORES['transposed at once']}\nscaled = Div (scores, eight)\n"

    @pytest.mark.parametrize(
        "change",
        [
            ("weights = Softmax <axis = -1> (scaled)", "weights = Softmax <axis = 2> (scaled)"),
            ("together = Transpose <perm = [0, 2, 1, 3]> (context)", "together = Identity (context)"),
            ("scaled = Div (scores, eight)", "scaled = Div (scores, scores)"),
            (
                "v_heads = Transpose <perm = [0, 2, 1, 3]> (v_split)",
                "v_heads = Transpose <perm = [0, 2, 3, 1]> (v_split)",
            ),
        ],
    )
    def test_other_patterns_are_not_found(self, change: tuple[str, str]) -> None:
        body = self.BODY + "weights = Softmax <axis = -1> (scaled)" + OUT
        assert len(find_attentions(graph_of(graph(THREE, body)))) == 1
        assert change[0] in body
        assert find_attentions(graph_of(graph(THREE, body.replace(*change)))) == []

    def test_weights_that_something_else_reads(self) -> None:
        model = graph(THREE, self.BODY + "weights = Softmax <axis = -1> (scaled)" + OUT)
        model.graph.output.append(helper.make_tensor_value_info("weights", onnx.TensorProto.FLOAT, None))
        assert find_attentions(graph_of(model)) == []

    def test_a_match_whose_shapes_say_no_is_left(self) -> None:
        """Reshape may take tokens and heads apart from something that is no (batch, tokens, heads x head_dim)."""
        flat = THREE.replace(f"float[b, s, {WIDTH}] q", f"float[c, {WIDTH}] q")
        body = self.BODY + "weights = Softmax <axis = -1> (scaled)" + OUT
        model = graph(flat, body.replace("Reshape (q, heads)", "Reshape (q, of_flat)"), of_flat=np.array([B, -1, N, D]))
        q, k, v = tensors(5, 7, 7)
        feed = {"q": q.reshape(-1, WIDTH), "k": k, "v": v}
        assert len(find_attentions(graph_of(model))) == 1
        result, proven = fused(model, feed)
        assert proven == []
        assert result == changed(model)
