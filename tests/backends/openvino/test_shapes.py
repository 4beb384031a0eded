"""OpenVINO's engine for batch 1 and for any other shape are one engine; a component's options come before its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from small_mobilevit import pictures, small_mobilevit
from tiny_graphs import component
from watched_openvino import CompiledModels, input_shapes, is_fixed, watch_openvino

from vlm_edge.backends import engine_available, load_engine
from vlm_edge.backends.base import Engine
from vlm_edge.backends.openvino.compile import write_ir
from vlm_edge.backends.openvino.engine import compile_properties
from vlm_edge.backends.openvino.fixed_shapes import fixed_sizes
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Component

needs_openvino = pytest.mark.skipif(engine_available("openvino") is not None, reason="OpenVINO is not installed")


def saved(model: onnx.ModelProto, folder: Path) -> tuple[Path, Component]:
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx", component(model, "net.onnx")


def tiny(inputs: str, body: str, outputs: str = "float[batch, 4] y") -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> net ({inputs}) => ({outputs}) {{ {body} }}')
    if any("w" in node.input for node in model.graph.node):
        model.graph.initializer.append(numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w"))
    return model


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> CompiledModels:
    """The models that OpenVINO compiled."""
    return watch_openvino(monkeypatch)


@needs_openvino
class TestShapes:
    @pytest.mark.parametrize("suffix", ["onnx", "xml"])
    def test_batch_1_and_batch_3_answer_as_the_dynamic_model(
        self, tmp_path: Path, models: CompiledModels, suffix: str
    ) -> None:
        import openvino

        path, row = saved(small_mobilevit(), tmp_path)
        if suffix == "xml":
            write_ir(path, tmp_path / "net.xml")
            path = tmp_path / "net.xml"
        engine = load_engine("openvino", path, row)
        assert [is_fixed(model) for model in models] == [True]
        dynamic = openvino.Core().compile_model(str(path), "CPU", compile_properties(1, {}))
        for batch in (1, 3, 1):
            (feed,) = pictures(1, batch=batch, seed=batch)
            wanted = dynamic(feed)[0]
            assert len(wanted) == batch
            np.testing.assert_allclose(engine.infer(feed)["image_embeds"], wanted, atol=1e-4)
        assert [is_fixed(model) for model in models] == [True, False, False]  # the second is this test's own

    def test_the_second_model_is_compiled_when_another_batch_comes(
        self, tmp_path: Path, models: CompiledModels
    ) -> None:
        engine = load_engine("openvino", *saved(tiny("float[batch, 3] x", "y = MatMul (x, w)"), tmp_path))
        engine.infer({"x": np.ones((1, 3), np.float32)})
        assert models.kinds == {"fixed"}
        engine.infer({"x": np.ones((2, 3), np.float32)})
        assert models.kinds == {"fixed", "any"}

    def test_outputs_keep_their_names_in_both(self, tmp_path: Path) -> None:
        """The manifest's order is not the file's, and a result of one model stays when the other runs."""
        model = tiny(
            "float[batch, 3] x",
            "y = MatMul (x, w)\n z = Neg (x)\n a = Exp (x)",
            "float[batch, 4] y, float[batch, 3] z, float[batch, 3] a",
        )
        path, row = saved(model, tmp_path)
        row = row.model_copy(update={"outputs": dict(reversed(row.outputs.items()))})
        engine = load_engine("openvino", path, row)
        x = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
        first, all_three = engine.infer({"x": x[:1]}), engine.infer({"x": x})
        assert list(first) == list(all_three) == ["a", "z", "y"]
        for found, given in ((first, x[:1]), (all_three, x)):
            np.testing.assert_allclose(found["a"], np.exp(given), atol=1e-5)
            np.testing.assert_allclose(found["z"], -given, atol=1e-6)
            np.testing.assert_allclose(found["y"], given @ np.arange(12).reshape(3, 4), atol=1e-4)

    def test_two_names_of_dimensions_are_never_fixed(self, tmp_path: Path, models: CompiledModels) -> None:
        model = tiny("float[batch, 3] x, float[t, 3] u", "r = ReduceSum (u)\n p = MatMul (x, w)\n y = Add (p, r)")
        path, row = saved(model, tmp_path)
        assert fixed_sizes(row) is None
        engine = load_engine("openvino", path, row)
        for batch, others in ((1, 1), (1, 2), (2, 1)):
            feed = {"x": np.ones((batch, 3), np.float32), "u": np.ones((others, 3), np.float32)}
            wanted = np.ones((batch, 3)) @ np.arange(12).reshape(3, 4) + 3 * others
            np.testing.assert_allclose(engine.infer(feed)["y"], wanted, atol=1e-4)
        assert models.kinds == {"any"}

    def test_a_dimension_that_is_no_batch_is_never_fixed(self, tmp_path: Path, models: CompiledModels) -> None:
        """Rows are folded in groups of four: one row is no input of this graph, and nothing is compiled for it."""
        model = tiny(
            "float[rows, 3] x",
            """shape = Constant <value_ints = [-1, 12]> ()
            folded = Reshape (x, shape)
            y = Identity (folded)""",
            "float[groups, 12] y",
        )
        path, row = saved(model, tmp_path)
        assert fixed_sizes(row) is None
        engine = load_engine("openvino", path, row)
        x = np.arange(24, dtype=np.float32).reshape(8, 3)
        np.testing.assert_array_equal(engine.infer({"x": x})["y"], x.reshape(2, 12))
        assert models.kinds == {"any"}

    @pytest.mark.parametrize(("name", "usual"), [("batch", "fixed"), ("images", "fixed"), ("groups", "any")])
    def test_one_model_is_compiled_when_the_engine_is_loaded(
        self, tmp_path: Path, models: CompiledModels, name: str, usual: str
    ) -> None:
        """Whichever is the usual one; a run of size 1 needs no other."""
        path, row = saved(tiny(f"float[{name}, 3] x", "y = MatMul (x, w)"), tmp_path)
        assert fixed_sizes(row) == ({name: 1} if usual == "fixed" else None)
        engine = load_engine("openvino", path, row)
        assert models.kinds == {usual}
        x = np.array([[1, 2, 3]], np.float32)
        np.testing.assert_allclose(engine.infer({"x": x})["y"], x @ np.arange(12).reshape(3, 4))
        assert models.kinds == {usual}

    @pytest.mark.parametrize("name", ["batch", "groups"])
    def test_an_unreadable_file_is_told_when_it_is_loaded(self, tmp_path: Path, name: str) -> None:
        path, row = saved(tiny(f"float[{name}, 3] x", "y = MatMul (x, w)"), tmp_path)
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(VlmEdgeError, match=r"net\.onnx: OpenVINO .* can't compile it"):
            load_engine("openvino", path, row)


class TestOptions:
    @needs_openvino
    def test_a_component_s_options_replace_the_engine_s(self, tmp_path: Path, models: CompiledModels) -> None:
        path, row = saved(tiny("float[batch, 3] x", "y = MatMul (x, w)"), tmp_path)
        own = row.model_copy(update={"options": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64}})
        given: dict[str, str | int] = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "NUM_STREAMS": 1}
        for each, size in ((row, 0), (own, 64)):
            load_engine("openvino", path, each, options=given)
            assert models[-1].get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == size

    def test_onnxruntime_s_as_well(self, tmp_path: Path) -> None:
        path, row = saved(tiny("float[batch, 3] x", "y = MatMul (x, w)"), tmp_path)
        with pytest.raises(VlmEdgeError, match="graph_optimization"):
            load_engine("onnxruntime", path, row, options={"graph_optimization": "most"})
        own = row.model_copy(update={"options": {"graph_optimization": "basic"}})
        engine = load_engine("onnxruntime", path, own, options={"graph_optimization": "most"})
        x = np.ones((2, 3), np.float32)
        np.testing.assert_allclose(engine.infer({"x": x})["y"], x @ np.arange(12).reshape(3, 4))

    def test_a_manifest_without_options_is_read(self, tmp_path: Path) -> None:
        _, row = saved(tiny("float[batch, 3] x", "y = MatMul (x, w)"), tmp_path)
        older = row.model_dump(exclude={"options", "threads"})
        assert Component.model_validate(older) == row
        assert Component.model_validate_json(row.model_dump_json()).options == {}


@needs_openvino
def test_products_transpose_keys_themselves(tmp_path: Path) -> None:
    """A product of queries and k^T, and one of other things that only looks like it."""
    import openvino

    path, row = saved(
        tiny(
            "float[batch, 2, 4, 3] q, float[batch, 5, 2, 3] k, float[batch, 3, 2, 5] other",
            """t = Transpose <perm = [0, 2, 3, 1]> (k)
            scores = MatMul (q, t)
            u = Transpose <perm = [0, 2, 1, 3]> (other)
            more = MatMul (q, u)
            y = Add (scores, more)""",
            "float[batch, 2, 4, 5] y",
        ),
        tmp_path,
    )
    write_ir(path, tmp_path / "net.xml")
    operators = openvino.Core().read_model(str(tmp_path / "net.xml")).get_ordered_ops()
    products = [node.get_attributes()["transpose_b"] for node in operators if node.get_type_name() == "MatMul"]
    assert sorted(products) == [False, True]
    generator = np.random.default_rng(0)
    feed = {name: generator.normal(size=[2, *spec.shape[1:]]).astype(np.float32) for name, spec in row.inputs.items()}
    wanted = feed["q"] @ feed["k"].transpose(0, 2, 3, 1) + feed["q"] @ feed["other"].transpose(0, 2, 1, 3)
    found = load_engine("openvino", tmp_path / "net.xml", row).infer(feed)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def cache_sizes(model: Any) -> dict[str, int]:
    """The sizes of a decoder's fixed model along which its feeds are filled up."""
    shapes = input_shapes(model)
    return {"past": shapes["past"][2], "past + new": shapes["decoder_attention_mask"][1], "seen": shapes["memory"][1]}


@needs_openvino
class TestFixedCache:
    """A decoder of one layer without weights: ``y`` adds up the cached tokens that count, and what memory shows."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> tuple[Path, Component]:
        text = """<ir_version: 10, opset_import: ["" : 20]>
        net (float[batch, 1, new, 2] x, int64[batch, total] decoder_attention_mask, int64[batch, seen] attention_mask,
             float[batch, seen] memory, float[batch, 1, past, 2] past)
            => (float[batch, 1, 1, 2] y, float[batch, 1, total, 2] present) {
          present = Concat <axis = 2> (past, x)
          counts = Cast <to = 1> (decoder_attention_mask)
          axes = Constant <value_ints = [1, 3]> ()
          column = Unsqueeze (counts, axes)
          counted = Mul (present, column)
          two = Constant <value_ints = [2]> ()
          sum = ReduceSum (counted, two)
          shown = Cast <to = 1> (attention_mask)
          seen_memory = Mul (memory, shown)
          one = Constant <value_ints = [1]> ()
          total_seen = ReduceSum (seen_memory, one)
          places = Constant <value_ints = [-1, 1, 1, 1]> ()
          added = Reshape (total_seen, places)
          y = Add (sum, added)
        }"""
        model = parser.parse_model(text)
        onnx.save(model, tmp_path / "net.onnx")
        row = component(model, "net.onnx")
        total = {
            name: spec.model_copy(
                update={"shape": tuple("past + new" if size == "total" else size for size in spec.shape)}
            )
            for name, spec in (row.inputs | row.outputs).items()
        }
        row = row.model_copy(
            update={
                "inputs": {name: total[name] for name in row.inputs},
                "outputs": {name: total[name] for name in row.outputs},
            }
        )
        return tmp_path / "net.onnx", row

    @pytest.fixture
    def engine(self, models: CompiledModels, file: tuple[Path, Component]) -> Engine:
        assert models == []  # it is watched before the engine is made
        return load_engine("openvino", *file)

    def check(self, engine: Engine, past: int, seen: int, *, batch: int = 1, new: int = 1, fill: float = 1.0) -> None:
        generator = np.random.default_rng(past + 1000 * seen)
        feed: dict[str, Any] = {
            "x": generator.normal(size=(batch, 1, new, 2)).astype(np.float32),
            "decoder_attention_mask": np.ones((batch, past + new), np.int64),
            "attention_mask": generator.integers(0, 2, (batch, seen)),
            "memory": generator.normal(size=(batch, seen)).astype(np.float32) * fill,
            "past": generator.normal(size=(batch, 1, past, 2)).astype(np.float32) * fill,
        }
        found = engine.infer(feed)
        present = np.concatenate([feed["past"], feed["x"]], axis=2)
        np.testing.assert_array_equal(found["present"], present)
        added = (feed["memory"] * feed["attention_mask"]).sum(1).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(found["y"], present.sum(2, keepdims=True) + added, rtol=1e-4, atol=1e-4)

    def test_any_length_up_to_the_fixed_one_runs_on_one_model(self, engine: Engine, models: CompiledModels) -> None:
        assert models == []
        self.check(engine, 0, 2)
        for past, seen in ((0, 1), (1, 1), (2, 1), (0, 5), (15, 16), (16, 16), (0, 3), (5, 2)):
            self.check(engine, past, seen)
        assert [is_fixed(model) for model in models] == [True]

    def test_nothing_of_an_answer_before_is_left(self, engine: Engine, models: CompiledModels) -> None:
        """Infinite values of a longer answer would turn to NaN under the mask."""
        with np.errstate(invalid="ignore"):
            feed = {
                "x": np.ones((1, 1, 1, 2), np.float32),
                "decoder_attention_mask": np.ones((1, 9), np.int64),
                "attention_mask": np.ones((1, 6), np.int64),
                "memory": np.full((1, 6), np.inf, np.float32),
                "past": np.full((1, 1, 8, 2), np.inf, np.float32),
            }
            assert np.isinf(engine.infer(feed)["y"]).all()
        self.check(engine, 2, 3)
        assert models.kinds == {"fixed"}

    def test_the_cache_grows_where_it_is_too_short(self, engine: Engine, models: CompiledModels) -> None:
        self.check(engine, 1, 4)
        self.check(engine, 17, 4)
        assert len(models) == 2
        assert cache_sizes(models[-1]) == {"past": 64, "past + new": 65, "seen": 16}
        for past, seen in ((3, 3), (64, 16), (0, 1)):
            self.check(engine, past, seen)
        assert len(models) == 2
        self.check(engine, 1, 50)
        assert cache_sizes(models[-1])["seen"] == 64
        assert models.kinds == {"fixed"}

    @pytest.mark.parametrize(
        ("past", "seen", "batch", "new"), [(65, 3, 1, 1), (2, 65, 1, 1), (2, 3, 2, 1), (2, 3, 1, 4)]
    )
    def test_other_shapes_run_on_the_model_for_any(
        self, engine: Engine, models: CompiledModels, past: int, seen: int, batch: int, new: int
    ) -> None:
        self.check(engine, past, seen, batch=batch, new=new)
        assert models.kinds == {"any"}
        self.check(engine, 4, 3)
        assert models.kinds == {"fixed", "any"}

    def test_a_first_feed_that_is_long_gets_a_long_cache_at_once(self, engine: Engine, models: CompiledModels) -> None:
        self.check(engine, 2, 30)
        assert [cache_sizes(model) for model in models] == [{"past": 16, "past + new": 17, "seen": 64}]

    def test_a_corrupt_file_is_told_when_it_is_loaded(self, file: tuple[Path, Component]) -> None:
        file[0].write_bytes(file[0].read_bytes()[:50])
        with pytest.raises(VlmEdgeError, match=r"net\.onnx: OpenVINO .* can't compile it"):
            load_engine("openvino", *file)

    def test_a_result_stays_when_the_next_one_comes(self, engine: Engine) -> None:
        feed = {
            "x": np.ones((1, 1, 1, 2), np.float32),
            "decoder_attention_mask": np.ones((1, 1), np.int64),
            "attention_mask": np.ones((1, 1), np.int64),
            "memory": np.zeros((1, 1), np.float32),
            "past": np.zeros((1, 1, 0, 2), np.float32),
        }
        before = engine.infer(feed)
        engine.infer(feed | {"x": np.full((1, 1, 1, 2), 5, np.float32)})
        np.testing.assert_array_equal(before["y"], np.ones((1, 1, 1, 2)))
        np.testing.assert_array_equal(before["present"], np.ones((1, 1, 1, 2)))
