"""Outlier channels in a small model: onnxruntime's own min-max quantization loses answers, the stage's does not."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from proto_passes import quantize_graph, with_outliers
from this_host import FORM

from vlm_edge.quantization.static import StaticSettings
from vlm_edge.stages.quantize_component import GOOD_COSINE
from vlm_edge.statistics.intervals import paired_change

MOST_PT, SAMPLES, CLASSES, TOKENS, WIDTH, HIDDEN = 0.5, 4000, 16, 4, 64, 128
GRAPH = f"""<ir_version: 10, opset_import: ["" : 20]>
net (float[rows, {TOKENS}, {WIDTH}] x) => (float[rows, {CLASSES}] logits) {{
  normed = LayerNormalization (x, gamma, beta)
  product = MatMul (normed, up)
  wide = Add (product, up_bias)
  active = Gelu (wide)
  narrow = MatMul (active, down)
  states = Add (narrow, x)
  final = LayerNormalization (states, final_gamma, final_beta)
  keys = MatMul (final, mix)
  one = Constant <value_ints = [1]> ()
  pooled = ReduceMean <keepdims = 0> (keys, one)
  product2 = MatMul (pooled, head)
  logits = Add (product2, head_bias)
}}"""


def model() -> tuple[onnx.ModelProto, NDArray[np.float32], NDArray[np.int64]]:
    """Random layers and a linear discriminant behind them: the graph, samples of all classes, and their labels."""
    generator = np.random.default_rng(5)
    values: dict[str, Any] = {
        "gamma": generator.uniform(0.5, 1.5, WIDTH),
        "beta": generator.normal(size=WIDTH) / 5,
        "up": generator.normal(size=(WIDTH, HIDDEN)) / 8,
        "up_bias": generator.normal(size=HIDDEN) / 5,
        "down": generator.normal(size=(HIDDEN, WIDTH)) / 5,
        "final_gamma": generator.uniform(0.5, 1.5, WIDTH),
        "final_beta": generator.normal(size=WIDTH) / 5,
        "mix": generator.normal(size=(WIDTH, WIDTH)) / 8,
        "head": np.zeros((WIDTH, CLASSES)),
        "head_bias": np.zeros(CLASSES),
    }
    centres = generator.normal(size=(CLASSES, TOKENS, WIDTH))
    labels = np.arange(SAMPLES) % CLASSES
    x = (0.7 * centres[labels] + generator.normal(size=(SAMPLES, TOKENS, WIDTH))).astype(np.float32)
    pooled = run(_built(values, output="pooled"), x)
    means = np.stack([pooled[labels == each].mean(axis=0) for each in range(CLASSES)])
    covariance = np.cov((pooled - means[labels]).T) + 1e-1 * np.eye(WIDTH)  # a norm's outputs have a dimension less
    values["head"] = np.linalg.solve(covariance, means.T)
    values["head_bias"] = -(means.T * values["head"]).sum(axis=0) / 2
    return _built(values), x, labels


def _built(values: dict[str, Any], output: str = "") -> onnx.ModelProto:
    built: onnx.ModelProto = parser.parse_model(GRAPH)
    built.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()
    )
    if output:
        built.graph.output.insert(0, onnx.helper.make_empty_tensor_value_info(output))
    return built


def run(graph: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": part})[0] for part in np.array_split(x, 8)])


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.rows = iter(feeds)

    def get_next(self) -> Any:
        return next(self.rows, None)


def by_onnxruntime(graph: onnx.ModelProto, feeds: list[dict[str, Any]], folder: Path) -> onnx.ModelProto:
    """As onnxruntime's documentation advises for x86 with VNNI: QDQ, min-max, u8 data, s8 weights by channel."""
    onnx.save(graph, folder / "float.onnx")
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ}
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(folder / "float.onnx", folder / "int8.onnx", Reader(feeds), per_channel=True, **kinds)
    return onnx.load(folder / "int8.onnx")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.bool_]]:
    """Which of the samples each graph gets right."""
    plain, x, labels = model()
    outlying, norms = with_outliers(plain, channels=4, factor=64.0)
    assert norms == 2
    feeds = [{"x": row[None]} for row in x[:64]]
    form, tested = FORM, x[64:]
    graphs = {
        "float": outlying,
        "plain": plain,
        "naive": by_onnxruntime(outlying, feeds, tmp_path_factory.mktemp("naive")),
        "naive without outliers": by_onnxruntime(plain, feeds, tmp_path_factory.mktemp("naive-plain")),
        "ours": quantize_graph(outlying, "int8-smooth", feeds, form, settings=StaticSettings(smooth=True)),
    }
    return {name: run(graph, tested).argmax(axis=1) == labels[64:] for name, graph in graphs.items()}


def drop_pt(answers: dict[str, NDArray[np.bool_]], name: str) -> tuple[float, float]:
    change = paired_change(answers["float"], answers[name], np.arange(len(answers["float"])), seed=0).drop
    return 100 * change.low, 100 * change.high


def test_outliers_leave_the_float_model_as_it_was(answers: dict[str, NDArray[np.bool_]]) -> None:
    assert (answers["float"] == answers["plain"]).mean() > 0.999
    assert 0.9 < answers["float"].mean() < 0.999


def test_min_max_loses_answers_to_outliers(answers: dict[str, NDArray[np.bool_]]) -> None:
    low, _ = drop_pt(answers, "naive")
    assert low > MOST_PT
    assert drop_pt(answers, "naive without outliers")[1] < low


def test_smoothing_keeps_them(answers: dict[str, NDArray[np.bool_]]) -> None:
    _, high = drop_pt(answers, "ours")
    assert high <= MOST_PT


def test_the_stage_would_not_have_taken_the_naive_form() -> None:
    """Without smoothing the outputs stray further than the stage accepts as good, so it tries the smoothed form."""
    plain, x, _ = model()
    outlying, _ = with_outliers(plain, channels=4, factor=64.0)
    feeds = [{"x": row[None]} for row in x[:64]]
    form = FORM
    wanted = run(outlying, x[64:320]).ravel()
    cosines = []
    for smooth in (False, True):
        scheme, settings = "int8-smooth" if smooth else "int8", StaticSettings(smooth=smooth)
        got = run(quantize_graph(outlying, scheme, feeds, form, settings=settings), x[64:320])
        cosines.append(float(wanted @ got.ravel() / np.linalg.norm(wanted) / np.linalg.norm(got)))
    assert cosines[0] < GOOD_COSINE
    assert cosines[1] > cosines[0]
