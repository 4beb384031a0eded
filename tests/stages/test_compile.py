"""The compile stage: engines that answer as their graphs do, are checked, slim, and the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import yaml
from known_facts import known
from onnx import TensorProto, helper, numpy_helper
from sealed import seal_again
from tiny_graphs import random_images, random_weights, vqa_answer, write_dual_encoder, write_vqa

from vlm_edge.backends import BACKENDS, compiling, engine_available, reference
from vlm_edge.core.artifact import Artifact, ArtifactKind, digest_folder, folder_size_bytes
from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.core.target import Target
from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs import files
from vlm_edge.graphs.passes.slim import Slim
from vlm_edge.graphs.shapes import multiply_adds
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import DualEncoderPipeline, VqaPipeline, load_pipeline
from vlm_edge.stages import compile as compile_stage
from vlm_edge.stages.compile import SPEC, CompileConfig
from vlm_edge.stages.compile_references import reference_runs, require_sound_scales

ROOT = Path(__file__).parents[2]
WAYS = [("onnxruntime", "runtime"), ("onnxruntime", "full"), ("openvino", "runtime"), ("openvino", "full")]
QUESTIONS = ["what color is it", "is it red", "green"]


def compiled(source: Path, out: Path, engine: str = "onnxruntime", optimize: str = "full") -> tuple[Path, dict]:
    """Run the stage; the engine's folder and the facts."""
    if (reason := engine_available(engine)) is not None:
        pytest.skip(reason)
    out.mkdir(parents=True)
    scratch = out.parent / f"{out.name}-scratch"
    scratch.mkdir()
    work = StageWork(out=out, scratch=scratch, seed=7)
    target = Target.model_validate({"name": "test", "engine": engine, "threads": 2})
    source_artifact = Artifact(ArtifactKind.GRAPHS, digest_folder(source), source)
    SPEC.run(CompileConfig(optimize=optimize), StageInputs(source=source_artifact, target=target), work)
    assert not list(scratch.iterdir())
    return out, known("compile", work.facts)


@pytest.mark.parametrize(("engine", "optimize"), WAYS)
class TestEveryEngine:
    def test_vqa_answers_as_its_graphs_do(self, tmp_path: Path, engine: str, optimize: str) -> None:
        weights = write_vqa(tmp_path / "graphs", seed=2)
        folder, facts = compiled(tmp_path / "graphs", tmp_path / "engine", engine, optimize)
        pipeline = load_pipeline(folder)
        assert isinstance(pipeline, VqaPipeline)
        images = random_images(3, seed=2)
        for image, question in zip(images, QUESTIONS, strict=True):
            ids = vqa_answer(weights, image, question)
            assert pipeline.answer(image, question).split() == pipeline.decode(ids).split()
        assert set(facts["components"]) == {"vision_encoder", "text_encoder", "decoder"}
        for row in facts["components"].values():
            assert row["max_relative_error"] < 1e-5
            assert row["size_bytes"] > 0
        assert json.loads(json.dumps(facts)) == facts

    def test_dual_encoder_embeds_as_its_graphs_do(self, tmp_path: Path, engine: str, optimize: str) -> None:
        write_dual_encoder(tmp_path / "graphs")
        folder, _ = compiled(tmp_path / "graphs", tmp_path / "engine", engine, optimize)
        graphs, pipeline = load_pipeline(tmp_path / "graphs"), load_pipeline(folder)
        assert isinstance(graphs, DualEncoderPipeline)
        assert isinstance(pipeline, DualEncoderPipeline)
        images = random_images(3)
        np.testing.assert_allclose(pipeline.embed_images(images), graphs.embed_images(images), atol=1e-5)
        np.testing.assert_allclose(pipeline.embed_texts(QUESTIONS), graphs.embed_texts(QUESTIONS), atol=1e-5)

    def test_manifest_names_the_engine_and_files_that_are_there(
        self, tmp_path: Path, engine: str, optimize: str
    ) -> None:
        write_vqa(tmp_path / "graphs")
        folder, facts = compiled(tmp_path / "graphs", tmp_path / "engine", engine, optimize)
        manifest = read_manifest(folder)
        assert manifest.engine is not None
        assert (manifest.engine.name, manifest.engine.threads) == (engine, 2)
        assert manifest.engine.version
        assert (folder / "tokenizer.json").is_file()
        for name, row in manifest.components.items():
            if optimize == "full":
                assert row.threads == facts["components"][name]["threads"] == 1
            else:
                assert row.threads is None

    def test_the_same_bytes_every_time_and_no_path_in_them(self, tmp_path: Path, engine: str, optimize: str) -> None:
        write_vqa(tmp_path / "graphs")
        folders = [
            compiled(tmp_path / "graphs", tmp_path / name / "engine", engine, optimize)[0] for name in ("one", "two")
        ]
        assert digest_folder(folders[0]) == digest_folder(folders[1])
        for path in folders[0].iterdir():
            assert str(tmp_path).encode() not in path.read_bytes()


def quantize_weights(path: Path) -> None:
    """Every float matrix of a graph as int8 with a Cast and a Mul after it, as weights are stored on disk."""
    model = onnx.load(path)
    nodes, tensors = [], []
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        scale = np.float32(np.abs(value).max() / 127)
        tensors += [
            numpy_helper.from_array(np.round(value / scale).astype(np.int8), f"{tensor.name}_int8"),
            numpy_helper.from_array(scale, f"{tensor.name}_scale"),
        ]
        nodes += [
            helper.make_node("Cast", [f"{tensor.name}_int8"], [f"{tensor.name}_cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{tensor.name}_cast", f"{tensor.name}_scale"], [tensor.name]),
        ]
    nodes += model.graph.node
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)
    onnx.save(model, path)
    seal_again(path.parent)


class TestIntegers:
    @pytest.mark.parametrize(("engine", "optimize"), WAYS)
    def test_int8_weights_stay_int8_on_disk(
        self, tmp_path: Path, engine: str, optimize: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        large = np.random.default_rng(0).normal(size=(12, 300)).astype(np.float32)
        weights = random_weights(0) | {"up": large / 10, "down": np.ascontiguousarray(large.T) / 10}
        monkeypatch.setattr("tiny_graphs.random_weights", {0: weights}.__getitem__)
        monkeypatch.setattr("tiny_graphs.DECODER", decoder_with_detour())
        write_vqa(tmp_path / "graphs")
        before = (tmp_path / "graphs" / "decoder.onnx").stat().st_size
        quantize_weights(tmp_path / "graphs" / "decoder.onnx")
        folder, facts = compiled(tmp_path / "graphs", tmp_path / "engine", engine, optimize)
        row = facts["components"]["decoder"]
        assert row["integer"]
        assert row["cosine"] >= reference.MIN_COSINE
        weights_file = next(path for path in folder.glob("decoder.*") if path.suffix in (".bin", ".onnx"))
        assert weights_file.stat().st_size < before / 2
        assert not facts["components"]["vision_encoder"]["integer"]


def decoder_with_detour() -> str:
    """The decoder with two larger matrices behind its logits, so that weights are most of the file."""
    import tiny_graphs

    head, tail = tiny_graphs.DECODER.rsplit("logits = MatMul (state_row, head)", 1)
    return f"{head}first = MatMul (state_row, head)\n  wide = MatMul (first, up)\n  logits = MatMul (wide, down){tail}"


class TestLargeGraphs:
    def test_weights_that_one_file_can_not_hold_lie_beside_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        large = np.random.default_rng(0).normal(size=(12, 300)).astype(np.float32) / 10
        weights = random_weights(2) | {"up": large, "down": np.ascontiguousarray(large.T)}
        monkeypatch.setattr("tiny_graphs.random_weights", {2: weights}.__getitem__)
        monkeypatch.setattr("tiny_graphs.DECODER", decoder_with_detour())
        monkeypatch.setattr(files, "EXTERNAL_DATA_BYTES", 4096)
        write_vqa(tmp_path / "graphs", seed=2)
        folder, facts = compiled(tmp_path / "graphs", tmp_path / "engine")
        assert (folder / "decoder.onnx.data").stat().st_size > 2 * large.nbytes - 1
        assert facts["components"]["decoder"]["size_bytes"] > 2 * large.nbytes
        again, _ = compiled(folder, tmp_path / "again")
        assert digest_folder(again) == digest_folder(compiled(folder, tmp_path / "once more")[0])
        image = random_images(1)[0]
        answers = [load_pipeline(path).answer(image, "is it red") for path in (tmp_path / "graphs", folder, again)]
        assert len(set(answers)) == 1


class TestChecks:
    def test_an_engine_that_strays_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_vqa(tmp_path / "graphs")

        class Wrong(Slim):
            def call(self, model: ir.Model) -> ir.passes.PassResult:
                value = model.graph.initializers.get("value_weight")
                if value is not None:
                    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
                return super().call(model)

        monkeypatch.setattr(compiling, "Slim", Wrong)
        with pytest.raises(VlmEdgeError, match=r"text_encoder: onnxruntime strays .*cross_key_values\.0\.value"):
            compiled(tmp_path / "graphs", tmp_path / "engine")

    @pytest.mark.parametrize(
        ("wanted", "got", "error"),
        [
            ([1.0, -4.0], [1.0, -4.0], 0.0),
            ([1.0, -4.0], [1.2, -4.0], 0.05),
            ([0.0, 0.0], [0.0, 0.0], 0.0),
            ([], [], 0.0),
            ([1.0], [np.nan], np.inf),
            ([1.0], [np.inf], np.inf),
        ],
    )
    def test_relative_error(self, wanted: list[float], got: list[float], error: float) -> None:
        arrays = np.array(wanted, np.float64), np.array(got, np.float64)
        assert reference.relative_error(*arrays) == pytest.approx(error)

    def test_both_batches_and_the_decoder_with_and_without_a_past_are_compared(self, tmp_path: Path) -> None:
        write_vqa(tmp_path, seed=2)
        runs = reference_runs(tmp_path, read_manifest(tmp_path), 1, 0, tmp_path)
        shapes = {name: [feed for feed, _ in each] for name, each in runs.items()}
        assert [len(feed["pixel_values"]) for feed in shapes["vision_encoder"]] == [1, 3]
        assert [len(feed["input_ids"]) for feed in shapes["text_encoder"]] == [1, 3]
        assert (shapes["text_encoder"][1]["attention_mask"] == 0).any()
        pasts = {feed["past_key_values.0.key"].shape[::2] for feed in shapes["decoder"]}
        assert {(1, 3), (3, 3)} == {(batch, 3) for batch, _ in pasts}
        assert {feed["past_key_values.0.key"].shape[2] for feed in shapes["decoder"]} >= {0, 1}

    @pytest.mark.parametrize("keep", [0, 100])
    def test_a_corrupt_graph_is_named(self, tmp_path: Path, keep: int) -> None:
        write_vqa(tmp_path / "graphs")
        path = tmp_path / "graphs" / "decoder.onnx"
        path.write_bytes(path.read_bytes()[:keep])
        seal_again(path.parent)
        with pytest.raises(VlmEdgeError) as caught:
            compiled(tmp_path / "graphs", tmp_path / "engine")
        assert str(path) in caught.value.message

    @pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
    def test_a_scale_that_is_no_finite_number_is_named(self, tmp_path: Path, scale: float) -> None:
        text = """<ir_version: 10, opset_import: ["" : 20]> net (float[4] x) => (float[4] y) {
          q = QuantizeLinear (x, good, zero)
          y = DequantizeLinear (q, bad, zero)
        }"""
        model = onnx.parser.parse_model(text)
        values = {"good": np.float32(0.1), "bad": np.float32(scale), "zero": np.uint8(0)}
        model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), name) for name, v in values.items())
        onnx.save(model, tmp_path / "net.onnx")
        with pytest.raises(VlmEdgeError, match=r"net\.onnx: the scale bad holds 0 or what is no finite number"):
            require_sound_scales(tmp_path / "net.onnx")


class TestSlim:
    def test_notes_of_the_exporter_are_left_behind(self, tmp_path: Path) -> None:
        write_vqa(tmp_path / "graphs")
        path = tmp_path / "graphs" / "decoder.onnx"
        model = onnx.load(path)
        for node in model.graph.node:
            node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/someone/model.py" * 40)
        onnx.save(model, path)
        seal_again(path.parent)
        for optimize in ("runtime", "full"):
            folder, _ = compiled(tmp_path / "graphs", tmp_path / optimize, optimize=optimize)
            assert folder_size_bytes(folder) < path.stat().st_size
            assert b"someone" not in (folder / "decoder.onnx").read_bytes()


def test_multiply_adds_of_known_operators(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[n, 3, 8, 8] x) => (float[n, 4, m, k] y) {
      c = Conv <pads = [1, 1, 1, 1], group = 1> (x, w)
      y = MatMul (c, m8)
    }"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    for name, shape in (("w", (4, 3, 3, 3)), ("m8", (8, 5))):
        model.graph.initializer.append(numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name))
    onnx.save(model, tmp_path / "g.onnx")
    feed = {"x": np.ones((2, 3, 8, 8), np.float32)}
    macs = multiply_adds(tmp_path / "g.onnx", [feed])
    assert macs == (2 * 4 * 8 * 8) * (3 * 3 * 3) + (2 * 4 * 8 * 5) * 8
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx"]


def test_shipped_targets_are_targets() -> None:
    files = sorted((ROOT / "recipes" / "targets").glob("*.yaml"))
    targets = [Target.model_validate(yaml.safe_load(file.read_text())) for file in files]
    assert [target.name for target in targets] == [file.stem for file in files]
    assert {target.engine for target in targets} == set(BACKENDS)


def test_spec() -> None:
    assert SPEC.output is ArtifactKind.ENGINE
    assert SPEC.host_bound
    assert compile_stage.CompileConfig().optimize == "full"
