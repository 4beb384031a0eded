"""INT8 graphs through the compile stage: kept as they are or in the fastest forms, they answer as their graph does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from known_facts import known
from numpy.typing import NDArray
from proto_passes import quantize_graph
from small_mobilevit import INTEGER_CONVOLUTIONS, SIZE, pictures, small_mobilevit
from tiny_graphs import component

from vlm_edge.backends import compiling, engine_available, load_engine
from vlm_edge.backends.base import Engine, Feed
from vlm_edge.backends.compiling import CompileJob
from vlm_edge.backends.onnxruntime import compile as onnxruntime_compile
from vlm_edge.backends.onnxruntime.lowering import OnnxRuntimeLowering
from vlm_edge.backends.openvino import compile as openvino_compile
from vlm_edge.backends.openvino.lowering import OpenVinoLowering
from vlm_edge.backends.reference import MIN_COSINE, ReferenceRuns
from vlm_edge.core.artifact import Artifact, ArtifactKind, digest_folder
from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.core.target import Target
from vlm_edge.graphs.passes.integer_forms import IntegerLayer
from vlm_edge.processing.manifest import Component, ImageProcessing, PipelineManifest, read_manifest, write_manifest
from vlm_edge.runtime import load_pipeline
from vlm_edge.stages.compile import SPEC, CompileConfig

FORM = OnnxRuntimeLowering(weight_bits=7)
INTEGER = ("QLinearConv", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GRAPHS folder of one quantized vision encoder. Do not write into it."""
    folder = tmp_path_factory.mktemp("int8") / "graphs"
    folder.mkdir()
    model = quantize_graph(small_mobilevit(), "int8", pictures(8), FORM)
    onnx.save(model, folder / "vision_encoder.onnx")
    manifest = PipelineManifest(
        family="mobilevit",
        pipeline="embedding",
        components={"vision_encoder": component(small_mobilevit(), "vision_encoder.onnx")},
        image=ImageProcessing(height=SIZE, width=SIZE, mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3)),
        precision={"vision_encoder": "int8"},
    )
    write_manifest(folder, manifest)
    return folder


def compiled(
    source: Path, out: Path, tune_seconds: float, engine: str = "onnxruntime", threads: int = 1
) -> tuple[Path, dict[str, Any]]:
    """Run the stage; the engine's folder and the component's facts."""
    if (reason := engine_available(engine)) is not None:
        pytest.skip(reason)
    scratch = out.parent / f"{out.name}-scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    work = StageWork(out=out, scratch=scratch, seed=7)
    target = Target.model_validate({"name": "test", "engine": engine, "threads": threads})
    inputs = StageInputs(source=Artifact(ArtifactKind.GRAPHS, digest_folder(source), source), target=target)
    SPEC.run(CompileConfig(tune_seconds=tune_seconds), inputs, work)
    assert not list(scratch.iterdir())
    return out, known("compile", work.facts)["components"]["vision_encoder"]


def kernels(folder: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(folder / "vision_encoder.onnx").graph.node)


def images(count: int) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(3)
    patches = generator.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return list(patches.repeat(4, axis=1).repeat(4, axis=2))


def cosine(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    return float((wanted * got).sum() / (np.linalg.norm(wanted) * np.linalg.norm(got)))


def embedded(folder: Path, count: int = 5) -> NDArray[Any]:
    pipeline: Any = load_pipeline(folder)
    return np.asarray(pipeline.embed_images(images(count)))


class TestWithoutSearch:
    def test_every_integer_layer_keeps_its_form(self, graphs: Path, tmp_path: Path) -> None:
        folder, facts = compiled(graphs, tmp_path / "engine", 0)
        before, after = kernels(graphs), kernels(folder)
        assert {name: after[name] for name in INTEGER} == {name: before[name] for name in INTEGER}
        assert after["QLinearConv"] == len(INTEGER_CONVOLUTIONS)
        assert "tuned" not in facts
        assert facts["attentions_fused"] == 1
        np.testing.assert_allclose(embedded(folder), embedded(graphs), atol=1e-2)

    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    def test_the_same_bytes_every_time(self, graphs: Path, tmp_path: Path, engine: str) -> None:
        """Only without a search: which of two forms of one speed wins a race is chance."""
        folders = [compiled(graphs_for(engine, graphs, tmp_path), tmp_path / name, 0, engine)[0] for name in "ab"]
        assert digest_folder(folders[0]) == digest_folder(folders[1])


def graphs_for(engine: str, graphs: Path, tmp_path: Path) -> Path:
    """``graphs``, or for OpenVINO, which has none of onnxruntime's operators, its float graph with int8 weights."""
    folder = tmp_path / "graphs"
    if engine == "onnxruntime" or folder.is_dir():
        return graphs if engine == "onnxruntime" else folder
    folder.mkdir()
    form = OpenVinoLowering(signed=True)
    onnx.save(quantize_graph(small_mobilevit(), "int8-weights", [], form), folder / "vision_encoder.onnx")
    write_manifest(folder, read_manifest(graphs))
    return folder


def recorded(engine: Engine, folder: Path) -> ReferenceRuns:
    """An engine's outputs for one picture, and for three at once."""
    runs = ReferenceRuns(folder)
    for batch in (1, 3):
        (feed,) = pictures(1, batch=batch)
        runs.keep(feed, engine.infer(feed))
    runs.single_runs = 1
    return runs


class FakeTuner:
    """Finds the forms that a test wants."""

    forms: Mapping[str, str] = {}

    def __init__(
        self,
        layers: list[IntegerLayer],
        groups: list[list[IntegerLayer]],
        model: ir.Model,
        feeds: list[Feed],
        load: Any,
        seconds: float,
        load_threaded: Any,
    ) -> None:
        assert load_threaded is None  # so small a component has one thread
        assert {len(feed["pixel_values"]) for feed in feeds} == {1}
        assert seconds == 5
        assert len(layers) == len(INTEGER_CONVOLUTIONS) + 7
        self.engine = load(model)

    def run(self) -> dict[str, Any]:
        return {"layers": dict(Counter(self.forms.values()))}


class TestWithSearch:
    def test_the_engine_answers_as_its_graph_and_tells_what_was_found(self, graphs: Path, tmp_path: Path) -> None:
        folder, facts = compiled(graphs, tmp_path / "engine", 0.2)
        tuned, after = facts["tuned"], kernels(folder)
        layers = len(INTEGER_CONVOLUTIONS) + 7
        assert sum(tuned["layers"].values()) == layers
        assert after["DynamicQuantizeMatMul"] == tuned["layers"].get("dynamic", 0)
        assert after["QLinearConv"] + after["MatMulIntegerToFloat"] == tuned["layers"].get("static", 0)
        assert tuned["races"] >= 3
        assert ("reverted" in tuned) == (tuned["layers"] == {"float": layers})
        assert facts["cosine"] >= MIN_COSINE or facts["float_cosine"] > 0.99
        assert cosine(embedded(graphs), embedded(folder)) > 0.99
        assert json.loads(json.dumps(facts)) == facts

    def test_with_two_threads_the_clock_is_asked_too(
        self, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of real engines, so either may win: unless float did in CPU time already, the clock's verdict is told."""
        monkeypatch.setattr(compiling, "WORK_PER_THREAD", 1000)
        _, facts = compiled(graphs, tmp_path / "engine", 0.2, threads=2)
        tuned = facts["tuned"]
        assert facts["threads"] == 2
        assert ("faster_than_float_by_clock" in tuned) == ("reverted" not in tuned)

    @pytest.mark.parametrize("form", ["dynamic", "float"])
    def test_the_forms_that_are_found_are_written(
        self, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
    ) -> None:
        """And the engine is held against the graph in the same forms: it agrees to the last bits of float."""
        names = ["key", "value", "out"]
        monkeypatch.setattr(FakeTuner, "forms", dict.fromkeys([*names, "fuse"] if form == "float" else names, form))
        monkeypatch.setattr(onnxruntime_compile, "Tuner", FakeTuner)
        monkeypatch.setattr(onnxruntime_compile, "race", lambda *_: [1.0, 1.0])
        folder, facts = compiled(graphs, tmp_path / "engine", 5)
        before, after = kernels(graphs), kernels(folder)
        assert before["MatMulIntegerToFloat"] - after["MatMulIntegerToFloat"] == 3
        assert after["DynamicQuantizeMatMul"] == (3 if form == "dynamic" else 0)
        assert before["QLinearConv"] - after["QLinearConv"] == (form == "float")
        assert facts["tuned"] == {"layers": dict(Counter(FakeTuner.forms.values()))}
        assert facts["cosine"] > 0.99999
        assert cosine(embedded(graphs), embedded(folder)) > 0.999

    def test_the_reference_of_changed_forms_is_the_graph_in_these_forms(self, graphs: Path, tmp_path: Path) -> None:
        manifest = read_manifest(graphs)
        row = manifest.components["vision_encoder"]
        engine = load_engine("onnxruntime", graphs / row.file, row, 1, {"graph_optimization": "disabled"})
        reference = recorded(engine, tmp_path / "runs")
        before = list(reference)
        job = CompileJob("vision_encoder", graphs / row.file, row, manifest, reference, tmp_path, tmp_path)
        onnxruntime_compile.refer_to_forms(job, dict.fromkeys(INTEGER_CONVOLUTIONS, "float"), 1)
        for (old, _), (new, _) in zip(before, reference, strict=True):
            np.testing.assert_array_equal(new["pixel_values"], old["pixel_values"])
        for (_, old), (_, new) in zip(before, reference, strict=True):
            assert not np.array_equal(old["image_embeds"], new["image_embeds"])
            assert cosine(old["image_embeds"], new["image_embeds"]) > 0.995
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]


class TestAttention:
    """One attention of two heads: fused, or left as it was where that is faster."""

    @pytest.mark.parametrize(
        ("times", "kept"), [([1.0, 0.9], 0), ([1.0, 0.995], 1), ([1.0, 1.1], 1)], ids=["slower", "even", "faster"]
    )
    def test_an_attention_that_is_slower_as_one_operator_is_left(
        self, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: list[float], kept: int
    ) -> None:
        monkeypatch.setattr(FakeTuner, "forms", {})
        monkeypatch.setattr(onnxruntime_compile, "Tuner", FakeTuner)
        monkeypatch.setattr(onnxruntime_compile, "race", lambda *_: times)
        folder, facts = compiled(graphs, tmp_path / "engine", 5)
        assert (facts["attentions_found"], facts["attentions_fused"]) == (1, kept)
        assert kernels(folder)["Attention"] == kept
        assert kernels(folder)["Softmax"] == 1 - kept
        np.testing.assert_allclose(embedded(folder), embedded(graphs), atol=1e-2)

    def test_without_a_search_it_is_fused_unraced(
        self, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnxruntime_compile, "race", None)
        folder, _ = compiled(graphs, tmp_path / "engine", 0)
        assert kernels(folder)["Attention"] == 1


class TestBfloat16:
    """OpenVINO's precision of what is float, by engines whose speed and error the test sets."""

    def tuned(
        self,
        graphs: Path,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        *,
        has: bool = True,
        error: float = 0.0,
        speed: float = 2.0,
    ) -> tuple[Component, dict[str, Any]]:
        path = tmp_path / "net.onnx"
        onnx.save(small_mobilevit(), path)
        plain = component(small_mobilevit(), path.name)
        row = plain.model_copy(update={"options": {"NUM_STREAMS": 1}})

        class Noisy:
            name = "openvino"

            def __init__(self, path: Path, row: Component, *, threads: int, options: Mapping[str, Any]) -> None:
                self.mixed = dict(options) == openvino_compile.BFLOAT16
                self.outputs = row.outputs
                self.inner = load_engine("onnxruntime", path, row.model_copy(update={"options": {}}), threads)

            def infer(self, feed: Feed) -> dict[str, Any]:
                noise = np.random.default_rng(0).normal(0, error if self.mixed else 0, (len(feed["pixel_values"]), 10))
                return {name: value + noise for name, value in self.inner.infer(feed).items()}

        def race(engines: tuple[Noisy, Noisy], feeds: list[Feed]) -> list[float]:
            assert [engine.mixed for engine in engines] == [False, True]
            assert [len(feed["pixel_values"]) for feed in feeds] == [1]
            return [1.0, 1 / speed]

        monkeypatch.setattr(openvino_compile, "OpenVinoEngine", Noisy)
        monkeypatch.setattr(openvino_compile, "computes_bfloat16", lambda: has)
        monkeypatch.setattr(openvino_compile, "race", race)
        reference = recorded(load_engine("onnxruntime", path, plain), tmp_path / "runs")
        job = CompileJob("vision_encoder", path, plain, read_manifest(graphs), reference, tmp_path, tmp_path)
        monkeypatch.setattr(CompileJob, "integer", True)
        return openvino_compile.tuned_row(job, path, row)

    def test_it_is_taken_where_it_is_faster(
        self, graphs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        row, facts = self.tuned(graphs, monkeypatch, tmp_path, error=0.001)
        assert row.options == {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
        assert facts == {"float_layers": "bf16", "faster_than_untuned": 2.0}

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"has": False}, "no bfloat16"),
            ({"error": 0.5}, "strays from the graph"),
            ({"speed": 1.005}, "0.995 times as long"),
            ({"speed": 0.5}, "2.000 times as long"),
        ],
    )
    def test_else_it_is_not(
        self, graphs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any], reason: str
    ) -> None:
        row, facts = self.tuned(graphs, monkeypatch, tmp_path, **settings)
        assert row.options == {"NUM_STREAMS": 1}
        assert facts["float_layers"] == "f32"
        assert reason in facts["reason"]
