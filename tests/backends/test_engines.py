"""onnxruntime, openvino and torch run one component alike, and refuse alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_graphs import DECODER, DIM, HEADS, TEXT_ENCODER, component, parse, random_weights

from vlm_edge.backends import BACKENDS, backend, engine_available, load_engine, resolve
from vlm_edge.backends.base import Array, Engine, Feed
from vlm_edge.backends.checks import check_feed
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Component

WEIGHTS = random_weights(5)
CPU_ENGINES = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Component]:
    path = tmp_path_factory.mktemp("engines") / "text_encoder.onnx"
    model = parse(TEXT_ENCODER, WEIGHTS)
    onnx.save(model, path)
    return path, component(model, path.name)


def feed(batch: int, tokens: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(batch)
    return {
        "input_ids": generator.integers(0, 12, (batch, tokens)),
        "attention_mask": np.ones((batch, tokens), np.int64),
        "image_features": generator.normal(size=(batch, 4, 3)).astype(np.float32),
    }


def expected(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    states = WEIGHTS["word_embeddings"][given["input_ids"]] * given["image_features"].mean(axis=1, keepdims=True)
    batch, tokens, _ = states.shape
    return {
        f"cross_key_values.0.{part}": (states @ WEIGHTS[f"{part}_weight"])
        .reshape(batch, tokens, HEADS, DIM)
        .transpose(0, 2, 1, 3)
        for part in ("key", "value")
    }


class TorchEngine:
    """The same component as a module of torch, as a third opinion on what engines give and refuse."""

    name = "torch"

    def __init__(self, rows: Component) -> None:
        self.torch: Any = pytest.importorskip("torch")
        self.inputs, self.outputs = rows.inputs, rows.outputs

    def infer(self, feed: Feed) -> dict[str, Array]:
        torch = self.torch
        check_feed(feed, self.inputs, "torch")
        words, image = (torch.from_numpy(array) for array in (WEIGHTS["word_embeddings"], feed["image_features"]))
        states = words[torch.from_numpy(feed["input_ids"])] * image.mean(dim=1, keepdim=True)
        products = (states @ torch.from_numpy(WEIGHTS[f"{part}_weight"]) for part in ("key", "value"))
        values = (product.unflatten(-1, (HEADS, DIM)).transpose(1, 2).numpy() for product in products)
        return dict(zip(self.outputs, values, strict=True))


def load(name: str, given: tuple[Path, Component]) -> Engine:
    if name == "torch":
        return TorchEngine(given[1])
    if (reason := engine_available(name)) is not None:
        pytest.skip(reason)
    return load_engine(name, *given, threads=1)


@pytest.mark.parametrize("name", [*CPU_ENGINES, "torch"])
class TestEveryEngine:
    def test_outputs_equal_numpy_at_every_size(self, name: str, text_encoder: tuple[Path, Component]) -> None:
        engine = load(name, text_encoder)
        assert engine.name == name
        assert dict(engine.inputs) == text_encoder[1].inputs
        assert dict(engine.outputs) == text_encoder[1].outputs
        for batch, tokens in ((1, 1), (3, 5), (1, 4), (3, 5)):
            given = feed(batch, tokens)
            results = engine.infer(given)
            assert list(results) == list(text_encoder[1].outputs)
            for key, value in expected(given).items():
                np.testing.assert_allclose(results[key], value, atol=1e-5)

    def test_a_result_is_kept_when_the_engine_runs_again(self, name: str, text_encoder: tuple[Path, Component]) -> None:
        """The decoder's cache of one step is the next step's input."""
        engine = load(name, text_encoder)
        first = engine.infer(feed(1, 4))
        copies = {key: value.copy() for key, value in first.items()}
        again = feed(1, 4)
        again["image_features"] += 1
        engine.infer(again)
        for key, value in copies.items():
            np.testing.assert_array_equal(first[key], value)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"input_ids": None}, "'input_ids' is missing"),
            ({"input_id": np.ones((1, 4), np.int64)}, "no input is called 'input_id'"),
            ({"input_ids": np.ones((1, 4), np.int32)}, "expected int64"),
            ({"image_features": np.ones((1, 4, 2), np.float32)}, "given float32 [1, 4, 2]"),
            ({"attention_mask": np.ones(4, np.int64)}, "given int64 [4]"),
        ],
    )
    def test_misfits_are_named(
        self, name: str, text_encoder: tuple[Path, Component], changes: dict[str, np.ndarray | None], words: str
    ) -> None:
        engine = load(name, text_encoder)
        given = {key: value for key, value in {**feed(1, 4), **changes}.items() if value is not None}
        with pytest.raises(VlmEdgeError) as caught:
            engine.infer(given)
        assert words in caught.value.message


@pytest.mark.parametrize("name", CPU_ENGINES)
class TestLoading:
    def test_a_past_of_length_zero(self, name: str, tmp_path: Path) -> None:
        model = parse(DECODER, WEIGHTS)
        onnx.save(model, tmp_path / "decoder.onnx")
        engine = load(name, (tmp_path / "decoder.onnx", component(model, "decoder.onnx")))
        given = {
            key: np.ones([{"batch": 2, "new": 1, "question_tokens": 3, "past": 0}.get(dim, dim) for dim in spec.shape])
            for key, spec in engine.inputs.items()
        }
        given = {key: value.astype(engine.inputs[key].dtype) for key, value in given.items()}
        assert engine.infer(given)["present.0.key"].shape == (2, HEADS, 1, DIM)

    @pytest.mark.parametrize("damage", ["empty", "text", "cut"])
    def test_corrupt_file_is_named(
        self, name: str, text_encoder: tuple[Path, Component], tmp_path: Path, damage: str
    ) -> None:
        load(name, text_encoder)
        path = tmp_path / "broken.onnx"
        content = {"empty": b"", "text": b"no model " * 9, "cut": text_encoder[0].read_bytes()[:200]}
        path.write_bytes(content[damage])
        with pytest.raises(VlmEdgeError) as caught:
            load_engine(name, path, text_encoder[1])
        assert caught.value.message.startswith(str(path))
        assert caught.value.hint

    def test_manifest_of_another_graph(self, name: str, text_encoder: tuple[Path, Component]) -> None:
        load(name, text_encoder)
        rows = text_encoder[1].model_copy(update={"outputs": component(parse(DECODER, WEIGHTS), "x").outputs})
        with pytest.raises(VlmEdgeError, match="no output 'logits'"):
            load_engine(name, text_encoder[0], rows)

    def test_unknown_option(self, name: str, text_encoder: tuple[Path, Component]) -> None:
        load(name, text_encoder)
        with pytest.raises(VlmEdgeError, match=r"(?i)spinin"):
            load_engine(name, *text_encoder, options={"SPININ": "yes"})


@pytest.mark.parametrize("graph_optimization", ["disabled", "basic", "extended", "all"])
@pytest.mark.parametrize("spinning", ["never", "during_run", "always"])
def test_onnxruntime_options_change_no_result(
    text_encoder: tuple[Path, Component], graph_optimization: str, spinning: str
) -> None:
    options = {"graph_optimization": graph_optimization, "spinning": spinning}
    engine = load_engine("onnxruntime", *text_encoder, threads=2, options=options)
    given = feed(2, 3)
    for key, value in expected(given).items():
        np.testing.assert_allclose(engine.infer(given)[key], value, atol=1e-5)


def test_missing_file(tmp_path: Path, text_encoder: tuple[Path, Component]) -> None:
    with pytest.raises(VlmEdgeError, match=r"none\.onnx: no such model file"):
        load_engine("onnxruntime", tmp_path / "none.onnx", text_encoder[1])


def test_unknown_engine_has_near_matches() -> None:
    with pytest.raises(VlmEdgeError) as caught:
        engine_available("opnvino")
    assert caught.value.hint == "did you mean 'openvino'?"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import vlm_edge.backends.openvino.engine as module

    monkeypatch.setattr(module.importlib.util, "find_spec", {}.get)
    assert "vlm-edge[openvino]" in str(engine_available("openvino"))
    with pytest.raises(VlmEdgeError, match="not installed"):
        load_engine("openvino", Path("x.xml"), Component.model_construct(file="x.xml", inputs={}, outputs={}))


@pytest.mark.parametrize("name", BACKENDS)
def test_the_table_names_what_exists(name: str) -> None:
    spec = backend(name)
    assert spec.name == name
    parts = [resolve(part) for part in (spec.engine, spec.compile, spec.lowering, spec.explain) if part]
    assert all(callable(part) for part in parts)
    assert parts[0].name == name
    assert parts[0].unavailable() is None or isinstance(parts[0].unavailable(), str)
