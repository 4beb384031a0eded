"""The quantize stage on a pipeline of hand-written graphs: what it writes, what it measures, what it refuses."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from color_task import write_color_task
from known_facts import known
from onnx import numpy_helper, parser
from proto_passes import quantize_graph
from pydantic import ValidationError
from tiny_graphs import IMAGE, WORDS, component, save_image, write_dual_encoder, write_tokenizer, write_vqa

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.core.artifact import Artifact, ArtifactKind, digest_folder
from vlm_edge.core.stage import StageInputs, StageWork, TaskSpec
from vlm_edge.core.target import Target
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import preprocess, read_image
from vlm_edge.processing.manifest import PipelineManifest, TextProcessing, read_manifest, write_manifest
from vlm_edge.quantizers.affine import Agreement
from vlm_edge.runtime.pipeline import load_pipeline
from vlm_edge.stages.quantize import SPEC, QuantizeConfig

WIDTH, HIDDEN = 48, 96
VISION = f"""<ir_version: 10, opset_import: ["" : 20]>
vision (float[images, 3, 8, 8] pixel_values) => (float[images, {WIDTH}] image_embeds) {{
  patches = Conv <kernel_shape = [4, 4], strides = [4, 4]> (pixel_values, patch_weight, patch_bias)
  flat = Reshape (patches, tokens_last)
  tokens = Transpose <perm = [0, 2, 1]> (flat)
  normed = LayerNormalization (tokens, gamma, beta)
  product = MatMul (normed, up)
  wide = Add (product, up_bias)
  active = Gelu (wide)
  narrow = MatMul (active, down)
  states = Add (narrow, tokens)
  one = Constant <value_ints = [1]> ()
  mean = ReduceMean <keepdims = 0> (states, one)
  image_embeds = LpNormalization <axis = -1, p = 2> (mean)
}}"""
TEXT = f"""<ir_version: 10, opset_import: ["" : 20]>
text (int64[texts, tokens] input_ids, int64[texts, tokens] attention_mask) => (float[texts, {WIDTH}] text_embeds) {{
  words = Gather (word_embeddings, input_ids)
  states = MatMul (words, mix)
  mask = Cast <to = 1> (attention_mask)
  two = Constant <value_ints = [2]> ()
  mask3 = Unsqueeze (mask, two)
  masked = Mul (states, mask3)
  one = Constant <value_ints = [1]> ()
  sums = ReduceSum <keepdims = 0> (masked, one)
  text_embeds = LpNormalization <axis = -1, p = 2> (sums)
}}"""


def vision_model(outlier: float = 1.0) -> onnx.ModelProto:
    """A patch convolution and an MLP; ``outlier`` scales one channel of the norm up and its weights down."""
    generator = np.random.default_rng(0)
    values: dict[str, Any] = {
        "patch_weight": generator.normal(size=(WIDTH, 3, 4, 4)) / 7,
        "patch_bias": generator.normal(size=WIDTH) / 5,
        "gamma": np.ones(WIDTH),
        "beta": generator.normal(size=WIDTH) / 5,
        "up": generator.normal(size=(WIDTH, HIDDEN)) / 7,
        "up_bias": generator.normal(size=HIDDEN) / 5,
        "down": generator.normal(size=(HIDDEN, WIDTH)) / 5,
    }
    for name, factor in (("gamma", outlier), ("beta", outlier), ("up", 1 / outlier)):
        values[name][3] *= factor
    return _model(VISION, values | {"tokens_last": np.array([0, WIDTH, -1])})


def _model(text: str, values: dict[str, Any]) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(text)
    for name, value in values.items():
        array = np.asarray(value)
        array = array if array.dtype == np.int64 else array.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def write_graphs(folder: Path, outlier: float = 1.0) -> Artifact:
    """A dual encoder whose graphs have what real ones have: convolution, norm, linear layers, embedding."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    text = _model(
        TEXT,
        {
            "word_embeddings": generator.normal(size=(64, WIDTH)),
            "mix": generator.normal(size=(WIDTH, WIDTH)) / 7,
        },
    )
    components = {}
    for name, model in (("vision_encoder", vision_model(outlier)), ("text_encoder", text)):
        onnx.save(model, folder / f"{name}.onnx")
        components[name] = component(model, f"{name}.onnx")
    write_tokenizer(folder)
    manifest = PipelineManifest(
        family="clip",
        pipeline="dual_encoder",
        components=components,
        image=IMAGE,
        text=TextProcessing(pad_token_id=0, max_length=10),
        logit_scale=10.0,
    )
    write_manifest(folder, manifest)
    return Artifact(ArtifactKind.GRAPHS, digest_folder(folder), folder)


def write_colors(folder: Path, images: int = 24) -> TaskSpec:
    """Classification of noisy colours, eight of them for calibration."""
    part = folder / "data" / "train"
    part.mkdir(parents=True)
    generator = np.random.default_rng(2)
    rows = []
    for number in range(images):
        label = ("red", "green", "blue")[number % 3]
        pixels = generator.integers(0, 120, (8, 8, 3), dtype=np.uint8)
        pixels[..., number % 3] += 120
        save_image(part / f"{number}.png", pixels)
        rows.append(json.dumps({"file_name": f"{number}.png", "label": label}) + "\n")
    (part / "metadata.jsonl").write_text("".join(rows))
    (folder / "colors.yaml").write_text(
        "name: colors\nkind: classification\nsource: {folder: data}\nlicence: MIT\n"
        "labels: [red, green, blue]\nprompts: ['{}', 'is it {}', 'what color is {}']\n"
        "splits:\n  calibration: {from: train, samples: 16, seed: 1}\n  train: {from: train}\n"
    )
    return TaskSpec(kind="classification", data=folder / "colors.yaml")


def quantize(
    folder: Path,
    source: Artifact,
    task: TaskSpec,
    *,
    engine: Any = "onnxruntime",
    isa: Any = "x86-vnni",
    **config: Any,
) -> tuple[Path, dict[str, Any]]:
    work = StageWork(out=folder / "out", scratch=folder / "scratch")
    work.out.mkdir(parents=True)
    work.scratch.mkdir()
    target = Target(name="box", engine=engine, threads=1, isa=isa)
    SPEC.run(QuantizeConfig(**config), StageInputs(source, task=task, target=target), work)
    assert list(work.scratch.iterdir()) == []
    return work.out, known("quantize", work.facts)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_graphs(tmp_path_factory.mktemp("graphs") / "g")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskSpec:
    return write_colors(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="module")
def quantized(
    graphs: Artifact, task: TaskSpec, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    return quantize(tmp_path_factory.mktemp("int8"), graphs, task)


def operators(folder: Path, name: str) -> list[str]:
    return [node.op_type for node in onnx.load(folder / f"{name}.onnx").graph.node]


def test_int8_runs_linear_layers_in_integers(quantized: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = quantized
    vision = facts["components"]["vision_encoder"]["operators"]
    assert vision["integer"] == {"MatMulIntegerToFloat": 2}
    assert vision["floating"] == {"Conv": 1}
    assert vision["stray_pairs"] == 0
    assert "DequantizeLinear" not in operators(folder, "vision_encoder")
    assert "GatherBlockQuantized" in operators(folder, "text_encoder")
    weights = WIDTH * 3 * 16 + 2 * WIDTH * HIDDEN
    assert vision["constant_bytes"]["int8"] == weights
    assert vision["constant_bytes"]["float32"] < weights


def test_facts_hold_the_error_on_held_out_samples(quantized: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = quantized
    assert (facts["calibration_samples"], facts["held_out_samples"], facts["isa"]) == (16, 2, "x86-vnni")
    for name, output in (("vision_encoder", "image_embeds"), ("text_encoder", "text_embeds")):
        component_facts = facts["components"][name]
        assert component_facts["scheme"] == "int8"
        assert component_facts["outputs"][output]["cosine"] > 0.999
        assert component_facts["outputs"][output]["sqnr_db"] > 25
        assert component_facts["size_bytes"] == (folder / f"{name}.onnx").stat().st_size
    assert json.loads(json.dumps(facts)) == facts
    assert read_manifest(folder).precision == {"vision_encoder": "int8", "text_encoder": "int8"}


def test_every_layer_has_its_error(quantized: tuple[Path, dict[str, Any]], graphs: Artifact) -> None:
    folder, facts = quantized
    layers = facts["components"]["vision_encoder"]["layers"]
    assert [layer["operator"] for layer in layers] == ["Conv", "MatMulIntegerToFloat", "MatMulIntegerToFloat"]
    assert [layer["input_sqnr_db"] is None for layer in layers] == [True, False, False]
    assert all(25 < layer[key] < 60 for layer in layers for key in ("weight_sqnr_db", "output_sqnr_db"))
    constants = {
        each.name: numpy_helper.to_array(each) for each in onnx.load(folder / "vision_encoder.onnx").graph.initializer
    }
    wanted = {
        each.name: numpy_helper.to_array(each)
        for each in onnx.load(graphs.path / "vision_encoder.onnx").graph.initializer
    }
    got = constants["patch_weight_levels"].astype(float) * constants["patch_weight_scales"]
    noise = np.square(wanted["patch_weight"] - got).sum()
    assert layers[0]["weight_sqnr_db"] == pytest.approx(
        10 * np.log10(np.square(wanted["patch_weight"]).sum() / noise), abs=0.01
    )
    table, linear = facts["components"]["text_encoder"]["layers"]
    assert (table["operator"], linear["operator"]) == ("GatherBlockQuantized", "MatMulIntegerToFloat")
    assert 35 < table["weight_sqnr_db"] < 55


def test_the_quantized_pipeline_agrees_with_the_float_one(
    quantized: tuple[Path, dict[str, Any]], graphs: Artifact, task: TaskSpec
) -> None:
    images = sorted(Path(task.data).parent.glob("data/train/*.png"))
    wanted, got = (
        load_pipeline(folder, threads=1).embed_images(images)  # type: ignore[union-attr]
        for folder in (graphs.path, quantized[0])
    )
    assert (wanted * got).sum(axis=1).min() > 0.998


def test_the_same_inputs_give_the_same_bytes(
    quantized: tuple[Path, dict[str, Any]], graphs: Artifact, task: TaskSpec, tmp_path: Path
) -> None:
    again, _ = quantize(tmp_path, graphs, task)
    assert digest_folder(again) == digest_folder(quantized[0])


def test_schemes_are_chosen_by_component(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    folder, facts = quantize(tmp_path, graphs, task, components={"vision_encoder": "int8-dynamic", "*": "none"})
    vision = facts["components"]["vision_encoder"]
    assert vision["operators"]["integer"] == {"DynamicQuantizeMatMul": 2}
    assert [layer["input_sqnr_db"] for layer in vision["layers"]] == [None, None, None]
    assert "layers" not in facts["components"]["text_encoder"]
    assert (folder / "text_encoder.onnx").read_bytes() == (graphs.path / "text_encoder.onnx").read_bytes()
    assert read_manifest(folder).precision == {"vision_encoder": "int8-dynamic", "text_encoder": "none"}


def test_int8_weights_keep_float_arithmetic(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    _, facts = quantize(tmp_path, graphs, task, components={"*": "int8-weights"})
    vision = facts["components"]["vision_encoder"]
    assert vision["operators"]["integer"] == {}
    assert vision["operators"]["floating"] == {"Conv": 1, "MatMul": 2}
    assert vision["size_bytes"] < vision["float_size_bytes"] / 2


def test_tensorrt_gets_symmetric_signed_pairs(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    folder, facts = quantize(tmp_path, graphs, task, engine="tensorrt", isa="cuda")
    vision = facts["components"]["vision_encoder"]
    assert vision["operators"]["fake_quantized"] == {"Conv": 1, "MatMul": 2}
    assert [layer["operator"] for layer in vision["layers"]] == ["Conv", "MatMul", "MatMul"]
    assert all(min(layer["weight_sqnr_db"], layer["input_sqnr_db"]) > 40 for layer in vision["layers"])
    assert all(layer["output_sqnr_db"] > 20 for layer in vision["layers"])
    model = onnx.load(folder / "vision_encoder.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zero_points = [constants[node.input[2]] for node in pairs if len(node.input) > 2]
    assert zero_points
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zero_points)
    assert {node.domain for node in model.graph.node} == {""}


def test_openvino_gets_standard_operators(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    folder, facts = quantize(tmp_path, graphs, task, engine="openvino")
    counts = facts["components"]["vision_encoder"]["operators"]
    assert counts["fake_quantized"] == {"MatMul": 2}
    assert counts["floating"] == {"Conv": 1}  # 48 products are too few
    assert {node.domain for node in onnx.load(folder / "vision_encoder.onnx").graph.node} == {""}
    image = preprocess([read_image(next(Path(task.data).parent.glob("data/train/*.png")))], IMAGE)
    from vlm_edge.backends import load_engine

    row = read_manifest(folder).components["vision_encoder"]
    wanted, got = (
        load_engine(engine, path / row.file, row).infer({"pixel_values": image})["image_embeds"]
        for engine, path in (("onnxruntime", graphs.path), ("openvino", folder))
    )
    assert float((wanted * got).sum()) > 0.995


def test_x86_without_vnni_gets_seven_bit_weights(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    folder, _ = quantize(tmp_path, graphs, task, isa="x86")
    model = onnx.load(folder / "vision_encoder.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kernels = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert max(np.abs(constants[node.input[1]].astype(int)).max() for node in kernels) <= 64


def test_an_outlier_channel_is_smoothed(task: TaskSpec, tmp_path: Path) -> None:
    source = write_graphs(tmp_path / "outlier", outlier=2000.0)
    folder, facts = quantize(tmp_path / "run", source, task, components={"vision_encoder": "int8", "*": "none"})
    vision = facts["components"]["vision_encoder"]
    first, second = vision["attempts"]
    assert (first["scheme"], second["scheme"]) == ("int8", "int8-smooth")
    assert second["cosine"] > first["cosine"]
    assert vision["scheme"] == "int8-smooth"
    assert {layer["weight_sqnr_db"] for layer in vision["layers"]} == {None}  # smoothed, so not the float graph's
    assert all(layer["output_sqnr_db"] > 10 for layer in vision["layers"])
    assert read_manifest(folder).precision["vision_encoder"] == "int8-smooth"
    assert operators(folder, "vision_encoder").count("Mul") <= 2  # the convolution's weight, and before the last layer


@pytest.mark.parametrize("weights_cosine", [0.9999, 0.9])
def test_what_strays_falls_back_to_weights_or_is_refused(
    weights_cosine: float, graphs: Artifact, task: TaskSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(path: Path, *_: Any) -> dict[str, Agreement]:
        integer = b"MatMulIntegerToFloat" in path.read_bytes()
        cosine = 0.97 if integer else weights_cosine
        total = Agreement()
        total.add(np.array([1.0, 0.0]), np.array([cosine, np.sqrt(1 - cosine**2)]))
        return {"image_embeds": total}

    monkeypatch.setattr("vlm_edge.stages.quantize_component.check", check)
    components = {"vision_encoder": "int8", "*": "none"}
    if weights_cosine < 0.98:
        with pytest.raises(VlmEdgeError, match=r"vision_encoder.*int8: cosine.*int8-smooth: .*int8-weights: ") as error:
            quantize(tmp_path, graphs, task, components=components)
        assert error.value.hint == "leave it in floating point: components: {vision_encoder: none}"
        return
    folder, facts = quantize(tmp_path, graphs, task, components=components)
    attempts = facts["components"]["vision_encoder"]["attempts"]
    schemes = [attempt["scheme"] for attempt in attempts]
    assert (schemes[:2], schemes[-1]) == (["int8", "int8-smooth"], "int8-weights")
    assert read_manifest(folder).precision["vision_encoder"] == "int8-weights"
    assert "MatMulIntegerToFloat" not in operators(folder, "vision_encoder")


def test_a_vqa_pipeline_is_quantized_with_its_decoder(tmp_path: Path) -> None:
    write_vqa(tmp_path / "graphs", seed=3)
    source = Artifact(ArtifactKind.GRAPHS, digest_folder(tmp_path / "graphs"), tmp_path / "graphs")
    folder, facts = quantize(tmp_path / "run", source, write_color_task(tmp_path / "task"), samples=8)
    assert set(facts["components"]) == {"vision_encoder", "text_encoder", "decoder"}
    assert facts["components"]["decoder"]["operators"]["integer"] == {"MatMulIntegerToFloat": 1}
    assert "logits" in facts["components"]["decoder"]["outputs"]
    answer = load_pipeline(folder, threads=1).answer(np.zeros((8, 8, 3), np.uint8), "what color is it")  # type: ignore[union-attr]
    assert set(answer.split()) <= set(WORDS)


def test_stdout_stays_empty(
    graphs: Artifact, task: TaskSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(tmp_path, graphs, task)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("components", "message", "hint"),
    [
        ({"vision_encodr": "int8"}, "'vision_encodr' is no component", "vision_encoder"),
        ({"vision_encoder": "int8"}, "no scheme for 'text_encoder'", "'*' for all others"),
    ],
)
def test_unknown_and_forgotten_components_are_named(
    components: dict[str, str], message: str, hint: str, graphs: Artifact, task: TaskSpec, tmp_path: Path
) -> None:
    with pytest.raises(VlmEdgeError, match=message) as error:
        quantize(tmp_path, graphs, task, components=components)
    assert hint in str(error.value.hint)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValidationError, match="int8-dynamic"):
        QuantizeConfig(components={"*": "int4"})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("engine", "schemes"),
    [
        ("openvino", "int8, int8-weights, int4-weights, float16-weights"),
        ("tensorrt", "int8, int8-weights, int4-weights"),
    ],
)
def test_dynamic_quantization_is_onnxruntime_s(
    engine: str, schemes: str, graphs: Artifact, task: TaskSpec, tmp_path: Path
) -> None:
    with pytest.raises(
        VlmEdgeError, match=f"int8-dynamic is for onnxruntime; the target's engine is {engine}"
    ) as error:
        quantize(tmp_path, graphs, task, engine=engine, components={"*": "int8-dynamic"})
    assert error.value.hint == f"schemes for {engine}: {schemes}, none"


def test_unreadable_images_are_an_error(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(Path(task.data).parent, broken)
    for path in broken.glob("data/train/1*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(
        VlmEdgeError, match=r"of 16 calibration images can't be read, more than 1%; the first is 1\d*\.png"
    ):
        quantize(tmp_path / "run", graphs, TaskSpec(kind="classification", data=broken / "colors.yaml"))


def test_one_sample_is_too_few(graphs: Artifact, tmp_path: Path) -> None:
    task = write_colors(tmp_path / "one", images=1)
    with pytest.raises(VlmEdgeError, match="1 calibration samples; at least 2"):
        quantize(tmp_path / "run", graphs, task)


def test_texts_of_a_dual_encoder_are_the_labels_in_their_prompts(tmp_path: Path) -> None:
    from vlm_edge.core.stage import SilentProgress
    from vlm_edge.data import load_dataset
    from vlm_edge.stages.quantize_capture import capture_inputs

    write_dual_encoder(tmp_path / "graphs")
    dataset = load_dataset(write_colors(tmp_path / "task").data, "calibration")
    manifest = read_manifest(tmp_path / "graphs")
    capture = capture_inputs(tmp_path / "graphs", manifest, dataset, tmp_path / "scratch", 1, SilentProgress())
    texts = capture.components["text_encoder"]
    seen = {tuple(feed["input_ids"][0]) for feed in (*texts.calibration, *texts.held_out)}
    assert len(seen) == 9
    vision = capture.components["vision_encoder"]
    images = [feed["pixel_values"] for feed in (*vision.calibration, *vision.held_out)]
    expected = [preprocess([read_image(sample.image)], IMAGE) for sample in dataset.samples]
    assert {image.tobytes() for image in images} == {image.tobytes() for image in expected}


def test_calibration_with_nothing_is_an_error() -> None:
    with pytest.raises(VlmEdgeError, match="no calibration input"):
        quantize_graph(vision_model(), "int8", [], lowering_of("onnxruntime", "x86-vnni"))


def test_a_second_target_takes_its_statistics_from_the_cache(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    counts = []
    for engine, isa in (("onnxruntime", "x86-vnni"), ("onnxruntime", "arm"), ("tensorrt", "cuda")):
        work = StageWork(tmp_path / f"out-{engine}-{isa}", tmp_path / f"s-{engine}-{isa}", cache=tmp_path / "cache")
        work.out.mkdir()
        work.scratch.mkdir()
        target = Target(name="box", engine=engine, threads=1, isa=isa)  # type: ignore[arg-type]
        SPEC.run(QuantizeConfig(), StageInputs(graphs, task=task, target=target), work)
        counts.append([facts["calibrated_tensors"] for facts in work.facts["components"].values()])
    assert min(counts[0]) > 0
    assert counts[1] == [0, 0]
    assert counts[2][1] == 0  # the text encoder's; TensorRT's form may quantize more of the vision encoder


def test_layers_are_ranked_by_what_each_alone_costs(quantized: tuple[Path, dict[str, Any]]) -> None:
    vision = quantized[1]["components"]["vision_encoder"]
    ranked = vision["sensitivity"]
    assert len(ranked) >= 2
    assert [row["sqnr_db"] for row in ranked] == sorted(row["sqnr_db"] for row in ranked)
    assert {row["float"] for row in ranked} == {False}
    assert min(row["sqnr_db"] for row in ranked) > vision["outputs"]["image_embeds"]["sqnr_db"] - 1
    shown = {layer["sensitivity_db"] for layer in vision["layers"]} - {None}
    assert shown == {row["sqnr_db"] for row in ranked}


def test_the_noisiest_layers_stay_float_until_the_bound_is_met(
    quantized: tuple[Path, dict[str, Any]], graphs: Artifact, task: TaskSpec, tmp_path: Path
) -> None:
    before = quantized[1]["components"]["vision_encoder"]
    bound = before["outputs"]["image_embeds"]["sqnr_db"] + 2
    components = {"vision_encoder": "int8", "*": "none"}
    _, facts = quantize(tmp_path, graphs, task, components=components, min_sqnr_db=bound)
    vision = facts["components"]["vision_encoder"]
    assert vision["outputs"]["image_embeds"]["sqnr_db"] >= bound
    left = [row["name"] for row in vision["sensitivity"] if row["float"]]
    assert sorted(left) == vision["float_layers"]
    assert 0 < len(left) < len(vision["sensitivity"])
    assert left == [row["name"] for row in vision["sensitivity"][: len(left)]]
    assert sum(vision["operators"]["integer"].values()) == sum(before["operators"]["integer"].values()) - len(left)


def test_layers_are_kept_float_by_name(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    names = {
        row["name"] for row in quantize(tmp_path / "a", graphs, task)[1]["components"]["text_encoder"]["sensitivity"]
    }
    (name,) = names
    folder, facts = quantize(tmp_path / "b", graphs, task, keep_float=[f"text_encoder/{name[:-1]}*"])
    assert facts["components"]["text_encoder"]["float_layers"] == [name]
    assert facts["components"]["text_encoder"]["operators"]["integer"] == {}
    assert facts["components"]["vision_encoder"]["float_layers"] == []
    weights = {each.name: each.data_type for each in onnx.load(folder / "text_encoder.onnx").graph.initializer}
    assert weights["mix"] == onnx.TensorProto.FLOAT


def test_a_pattern_that_matches_nothing_names_near_layers(graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    names = quantize(tmp_path / "a", graphs, task)[1]["components"]["text_encoder"]["sensitivity"]
    with pytest.raises(VlmEdgeError, match=r"keep_float: .* matches no layer") as error:
        quantize(tmp_path / "b", graphs, task, keep_float=[names[0]["name"] + "x"])
    assert names[0]["name"] in str(error.value.hint)


@pytest.mark.parametrize("ranges", ["percentile", "mse", "entropy"])
def test_the_recipe_chooses_the_ranges(ranges: Any, graphs: Artifact, task: TaskSpec, tmp_path: Path) -> None:
    _, facts = quantize(tmp_path, graphs, task, ranges=ranges, sensitivity="none")
    vision = facts["components"]["vision_encoder"]
    assert (vision["ranges"], vision["sensitivity"]) == (ranges, [])
    assert {attempt["ranges"] for attempt in vision["attempts"]} == {ranges}
    assert vision["outputs"]["image_embeds"]["cosine"] > 0.99


def test_captured_runs_are_thinned_when_they_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_edge.stages.quantize_capture import ArrayFile, ThinnedFiles

    monkeypatch.setattr("vlm_edge.stages.quantize_capture.MOST_BYTES", 40_000)
    files = ArrayFile(tmp_path / "inputs"), ArrayFile(tmp_path / "outputs")
    thinned = ThinnedFiles(*files)
    for number in range(400):
        thinned.append({"x": np.full(100, number)}, {"y": np.full(50, -number)})
        assert files[0].size_bytes <= 40_000
    kept = [int(each["x"][0]) for each in files[0]]
    assert [-int(each["y"][0]) for each in files[1]] == kept == sorted(kept)
    assert 15 < len(kept) < 45
    assert (kept[0], len({number % 2 for number in kept})) == (0, 2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["inputs", "outputs"]


def test_a_generating_pipeline_is_captured_with_its_cached_states(tmp_path: Path) -> None:
    from vlm_edge.core.stage import SilentProgress
    from vlm_edge.data import load_dataset
    from vlm_edge.stages.quantize_capture import capture_inputs

    write_vqa(tmp_path / "graphs", seed=3)
    dataset = load_dataset(write_color_task(tmp_path / "task").data, "calibration", limit=4)
    manifest = read_manifest(tmp_path / "graphs")
    capture = capture_inputs(tmp_path / "graphs", manifest, dataset, tmp_path / "scratch", 1, SilentProgress())
    decoder = capture.components["decoder"]
    pasts = [name for name in manifest.components["decoder"].inputs if name.startswith("past_key_values.")]
    lengths = [[feed[name].shape[2] for name in pasts] for feed in (*decoder.calibration, *decoder.held_out)]
    steps = [each[0] for each in lengths]
    assert pasts
    assert all(len(set(each)) == 1 for each in lengths)
    assert steps.count(0) == 4
    assert all(after in (0, before + 1) for before, after in pairwise(steps))
