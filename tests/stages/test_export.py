"""The export stage: graphs that are the model, and nothing left behind when they aren't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny_towers
import torch
import transformers
from known_facts import known
from torch import Tensor, nn

from vlm_edge.core.artifact import Artifact, ArtifactKind, digest_file
from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import ComponentExport
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.manifest import TensorSpec, read_manifest
from vlm_edge.stages.export import SPEC, ExportConfig, run
from vlm_edge.stages.export_check import Difference, check_component, load_graph
from vlm_edge.stages.export_composed import check_pipeline, torch_says
from vlm_edge.stages.export_graph import check_graph, export_component
from vlm_edge.stages.export_references import resized, size_sets, torch_references
from vlm_edge.surgery.replay import apply_surgery

CPU = ["CPUExecutionProvider"]


class Scale(nn.Module):
    """A component of one multiplication, quick to export."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, width + 1))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * self.weight,)


def scale_component(module: nn.Module | None = None) -> ComponentExport:
    module = module or Scale()
    return ComponentExport(module.eval(), {"x": torch.ones(2, 4)}, {"x": {0: "rows"}}, {"y": ("rows", 4)})


class FakeEngine:
    """Answers with what a function makes of the feed."""

    name = "fake"

    def __init__(
        self,
        infer: Callable[[dict[str, Any]], dict[str, Any]],
        inputs: dict[str, TensorSpec],
        outputs: dict[str, TensorSpec] | None = None,
    ) -> None:
        self.infer: Any = infer
        self.inputs = inputs
        self.outputs = outputs or {}


def inputs_of(folder: Path) -> StageInputs:
    return StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, folder))


def work_in(folder: Path) -> StageWork:
    work = StageWork(out=folder / "out", scratch=folder / "scratch")
    work.out.mkdir(parents=True)
    work.scratch.mkdir()
    return work


def operators(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def test_blip_graphs_and_manifest(tiny_blip_graphs: Any, tiny_blip: Path) -> None:
    folder = tiny_blip_graphs.folder
    names = {path.name for path in folder.iterdir()}
    assert names == {"vision_encoder.onnx", "text_encoder.onnx", "decoder.onnx", "tokenizer.json", "manifest.json"}
    assert digest_file(folder / "tokenizer.json") == digest_file(tiny_blip / "tokenizer.json")
    manifest = read_manifest(folder)
    assert (manifest.family, manifest.pipeline, manifest.engine) == ("blip-vqa", "vqa", None)
    assert list(manifest.components) == ["vision_encoder", "text_encoder", "decoder"]
    assert manifest.components["vision_encoder"].outputs["image_features"].shape == ("images", 17, 32)
    decoder = manifest.components["decoder"]
    assert decoder.inputs["past_key_values.1.value"].shape == ("batch", 4, "past", 8)
    assert decoder.inputs["cross_key_values.0.key"].shape == ("batch", 4, "question_tokens", 8)
    assert decoder.inputs["input_ids"].dtype == "int64"
    assert decoder.outputs["present.0.key"].shape == ("batch", 4, "past + new", 8)
    assert next(iter(decoder.outputs)) == "logits"
    assert set(manifest.components["text_encoder"].outputs) == {
        name for name in decoder.inputs if name.startswith("cross_key_values.")
    }
    assert set(manifest.precision.values()) == {"float32"}


def test_the_manifest_is_what_the_graphs_say(tiny_blip_graphs: Any, tiny_clip_graphs: Any) -> None:
    for folder in (tiny_blip_graphs.folder, tiny_clip_graphs.folder):
        for component in read_manifest(folder).components.values():
            session = ort.InferenceSession(folder / component.file, providers=CPU)
            for specs, values in ((component.inputs, session.get_inputs()), (component.outputs, session.get_outputs())):
                assert [(value.name, tuple(value.shape)) for value in values] == [
                    (name, spec.shape) for name, spec in specs.items()
                ]


def test_facts_say_what_was_checked(tiny_blip_graphs: Any, tiny_clip_graphs: Any) -> None:
    for exported in (tiny_blip_graphs, tiny_clip_graphs):
        known("export", exported.facts)
        assert set(exported.facts["parity"]) == set(exported.facts["graphs"])
        for parity in exported.facts["parity"].values():
            assert 0 < parity["max_relative_error"] < 1e-5
        for name, graph in exported.facts["graphs"].items():
            assert graph["size_bytes"] == (exported.folder / f"{name}.onnx").stat().st_size
            assert graph["nodes"] == sum(operators(exported.folder / f"{name}.onnx").values())
    assert tiny_blip_graphs.facts["composed"] == {"questions_equal": 6, "ties": 0}
    assert tiny_clip_graphs.facts["composed"]["images"] == 6


def test_graphs_are_small_and_standard(tiny_blip_graphs: Any) -> None:
    vision = operators(tiny_blip_graphs.folder / "vision_encoder.onnx")
    assert vision["LayerNormalization"] == 5  # two a layer and the last one
    assert vision["Gelu"] == 2
    assert vision["Softmax"] == 2
    assert vision["MatMul"] == 12  # a layer: qkv, scores, context, projection, fc1, fc2
    model = onnx.load(tiny_blip_graphs.folder / "decoder.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not model.functions
    assert not model.metadata_props
    assert not model.graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    assert not any(value.metadata_props or value.doc_string for value in values)
    embedding = [weight.name for weight in model.graph.initializer if list(weight.dims) == [128, 32]]
    assert len(embedding) == 1  # tied to the head: stored once


def test_clip_scores_as_transformers_does(tiny_clip_graphs: Any, tiny_clip: Path) -> None:
    manifest = read_manifest(tiny_clip_graphs.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_clip)
    texts = tokenizer(["a red circle", "blue"], padding=True, return_tensors="pt")
    pixels = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(8))
    sessions = {
        name: ort.InferenceSession(tiny_clip_graphs.folder / component.file, providers=CPU)
        for name, component in manifest.components.items()
    }
    (images,) = sessions["vision_encoder"].run(None, {"pixel_values": pixels.numpy()})
    feed = {name: texts[name].numpy() for name in ("input_ids", "attention_mask")}
    (embeds,) = sessions["text_encoder"].run(None, feed)
    reference = transformers.CLIPModel.from_pretrained(tiny_clip)
    with torch.no_grad():
        expected = reference(pixel_values=pixels, **{name: texts[name] for name in feed}).logits_per_image
    assert manifest.logit_scale is not None
    np.testing.assert_allclose(manifest.logit_scale * images @ embeds.T, expected, atol=1e-4)


def test_a_pruned_decoder_and_a_student_tower_export(tiny_blip: Path, tmp_path: Path) -> None:
    """Heads differ from layer to layer, self from cross, and the image's tokens from the dense model's."""
    operations: list[dict[str, Any]] = [
        {"op": "prune_heads", "site": "text_encoder.encoder.layer.0.crossattention.self", "keep": [1]},
        {"op": "prune_heads", "site": "text_decoder.bert.encoder.layer.0.crossattention.self", "keep": [0, 3]},
        {"op": "prune_heads", "site": "text_decoder.bert.encoder.layer.1.attention.self", "keep": [0, 1, 2]},
        {
            "op": "replace_vision_tower",
            "student": "mobilevit-xxs",
            "config": {"image_height": 32, "image_width": 32},
        },
    ]
    loaded = load_checkpoint(tiny_blip)
    apply_surgery(loaded.model, loaded.family, operations, tmp_path)
    exports = loaded.family.components(loaded.model.eval(), loaded.family.image_processing(tiny_blip))
    for name in ("vision_encoder", "decoder"):
        entry = export_component(name, exports[name], tmp_path, opset=20)
        check_component(name, torch_references(name, exports[name]), load_graph(tmp_path / entry.file, entry), 1e-5)
    assert entry.inputs["cross_key_values.0.key"].shape == ("batch", 2, "question_tokens", 8)
    assert entry.inputs["cross_key_values.1.key"].shape == ("batch", 4, "question_tokens", 8)
    assert entry.inputs["past_key_values.1.key"].shape == ("batch", 3, "past", 8)
    assert exports["text_encoder"].example["image_features"].shape == (2, 5, 32)
    assert exports["text_encoder"].output_shapes["cross_key_values.0.key"] == ("batch", 2, "question_tokens", 8)


def test_a_second_export_has_the_same_bytes(tiny_clip_graphs: Any, tiny_clip: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_clip)
    exports = loaded.family.components(loaded.model, loaded.family.image_processing(tiny_clip))
    export_component("text_encoder", exports["text_encoder"], tmp_path, opset=20)
    assert digest_file(tmp_path / "text_encoder.onnx") == digest_file(tiny_clip_graphs.folder / "text_encoder.onnx")


def test_beyond_tolerance_nothing_is_left_in_out(tmp_path: Path) -> None:
    tower = tiny_towers.checkpoint_of(tmp_path / "tower", name="dinov2")
    work = work_in(tmp_path)
    (work.scratch / "graphs").mkdir()
    (work.scratch / "graphs" / "stale.onnx").write_bytes(b"of a killed run")
    with pytest.raises(VlmEdgeError, match=r"vision_encoder: output image_\w+ differs from torch .* allowed: 1e-12"):
        run(ExportConfig(tolerance=1e-12), inputs_of(tower), work)
    assert list(work.out.iterdir()) == []
    assert not (work.scratch / "graphs" / "stale.onnx").exists()


def test_what_torch_cannot_export_is_the_users_to_know(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x if float(x.detach().sum()) > 0 else -x,)

    with pytest.raises(VlmEdgeError, match=r"branching: torch\.onnx can't export it at opset 20") as caught:
        export_component("branching", scale_component(Branching()), tmp_path, opset=20)
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x00\x01not onnx")
    with pytest.raises(VlmEdgeError, match="not a valid ONNX model"):
        check_graph(tmp_path / "broken.onnx")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["missing"], ["y"])], "g", [], [onnx.ValueInfoProto(name="y")]
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "dangling.onnx")
    with pytest.raises(VlmEdgeError, match="not a valid ONNX model"):
        check_graph(tmp_path / "dangling.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y * 1.001, r"scale: output y differs from torch by 1\.0e-03"),
        (lambda y: np.where(y == y.max(), np.nan, y), "differs from torch by inf"),
        (lambda y: y[:, :3], "differs from torch by inf"),
        (lambda y: y if len(y) > 1 else y + 1, "at {'rows': 1}"),
    ],
    ids=["off", "not finite", "another shape", "one size alone"],
)
def test_a_component_that_differs_is_refused(change: Callable[[Any], Any], message: str) -> None:
    engine: Any = FakeEngine(lambda feed: {"y": change(feed["x"] * np.arange(1, 5, dtype=np.float32))}, {})
    with pytest.raises(VlmEdgeError, match=message):
        check_component("scale", torch_references("scale", scale_component()), engine, 1e-4)


def test_a_model_that_is_not_finite_is_told_apart() -> None:
    module = Scale()
    module.weight.data[2] = float("nan")
    with pytest.raises(VlmEdgeError, match="the model's own y is not finite"):
        list(torch_references("scale", scale_component(module)))


def test_a_difference_is_relative_to_the_largest_value() -> None:
    difference = Difference.between(np.array([10.0, 0.001]), np.array([10.0, 0.0]))
    assert difference == Difference(absolute=0.001, relative=0.0001)
    assert Difference.between(np.zeros((2, 0)), np.zeros((2, 0))) == Difference(0.0, 0.0)
    assert Difference.between(np.zeros(2), np.array([0.0, np.inf])).relative == float("inf")


def test_sizes_that_every_component_is_checked_at() -> None:
    component = ComponentExport(
        Scale(),
        {"ids": torch.arange(6).reshape(2, 3), "cache": torch.arange(20.0).reshape(2, 5, 2)},
        {"ids": {0: "batch", 1: "new"}, "cache": {0: "batch", 1: "past"}},
        {"y": ("batch",)},
        may_be_empty=frozenset({"past"}),
    )
    example, more, least = size_sets(component)
    assert example == {"batch": 2, "new": 3, "past": 5}
    assert more == {"batch": 3, "new": 4, "past": 6}
    assert least == {"batch": 1, "new": 1, "past": 0}
    assert resized(component, more)["ids"].tolist() == [[0, 1, 2, 0], [3, 4, 5, 3], [0, 1, 2, 0]]
    assert resized(component, least)["cache"].shape == (1, 0, 2)


def graphs_of(folder: Path) -> dict[str, Any]:
    components = read_manifest(folder).components
    return {name: load_graph(folder / component.file, component) for name, component in components.items()}


def test_one_wrong_token_is_refused(tiny_blip: Path, tiny_blip_graphs: Any) -> None:
    manifest = read_manifest(tiny_blip_graphs.folder)
    graphs = graphs_of(tiny_blip_graphs.folder)
    real = graphs["decoder"]

    def second_best(feed: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = real.infer(feed)
        if feed["past_key_values.0.key"].shape[2] == 2:
            best = result["logits"][-1, -1].argmax()
            result["logits"][-1, -1, best] = -1e9
        return result

    graphs["decoder"] = FakeEngine(second_best, real.inputs, real.outputs)
    with pytest.raises(VlmEdgeError, match=r"composed graphs: question 5 is answered \[.*\], by generate \["):
        check_pipeline(tiny_blip, manifest, graphs, torch_says(load_checkpoint(tiny_blip), manifest), 1e-4)


def test_a_tie_may_be_broken_either_way(tiny_blip: Path, tiny_blip_graphs: Any) -> None:
    """Two tokens with one embedding and one bias: the model can't tell them apart, so neither is wrong."""
    loaded, manifest = load_checkpoint(tiny_blip), read_manifest(tiny_blip_graphs.folder)
    head = loaded.model.get_submodule("text_decoder.cls.predictions.decoder")
    weight, bias = head.get_parameter("weight"), head.get_parameter("bias")
    with torch.no_grad():
        bias[[90, 91]] = 1e3
        weight[91] = weight[90]
    wanted = torch_says(loaded, manifest)
    graphs = graphs_of(tiny_blip_graphs.folder)
    real = graphs["decoder"]

    def take(token: int) -> FakeEngine:
        def infer(feed: dict[str, Any]) -> dict[str, Any]:
            result: dict[str, Any] = real.infer(feed)
            result["logits"][:] = 0
            result["logits"][:, :, token] = 1
            return result

        return FakeEngine(infer, real.inputs, real.outputs)

    for token, ties in ((90, 0), (91, 6)):
        facts = check_pipeline(tiny_blip, manifest, graphs | {"decoder": take(token)}, wanted, 1e-4)
        assert facts == {"questions_equal": 6 - ties, "ties": ties}
    with pytest.raises(VlmEdgeError, match="question 0 is answered"):
        check_pipeline(tiny_blip, manifest, graphs | {"decoder": take(92)}, wanted, 1e-4)


def test_wrong_similarities_are_refused(tiny_clip: Path, tiny_clip_graphs: Any) -> None:
    manifest = read_manifest(tiny_clip_graphs.folder)
    graphs, wanted = graphs_of(tiny_clip_graphs.folder), torch_says(load_checkpoint(tiny_clip), manifest)
    with pytest.raises(VlmEdgeError, match="similarities differ from the model's"):
        check_pipeline(tiny_clip, manifest.model_copy(update={"logit_scale": 14.0}), graphs, wanted, 1e-4)


def test_the_stages_contract() -> None:
    assert (SPEC.name, SPEC.output, SPEC.reads, SPEC.host_bound) == ("export", ArtifactKind.GRAPHS, frozenset(), False)
    assert SPEC.config is ExportConfig
