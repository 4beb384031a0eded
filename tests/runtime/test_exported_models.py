"""Exported and compiled checkpoints answer as transformers does, from the image file to the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from vlm_edge.backends import engine_available  # noqa: E402
from vlm_edge.core.artifact import Artifact, ArtifactKind  # noqa: E402
from vlm_edge.core.stage import StageInputs, StageWork  # noqa: E402
from vlm_edge.core.target import Target  # noqa: E402
from vlm_edge.families.loading import load_checkpoint  # noqa: E402
from vlm_edge.runtime import DualEncoderPipeline, VqaPipeline, load_pipeline  # noqa: E402
from vlm_edge.stages import compile  # noqa: E402

QUESTIONS = ["what is in the image ?", "is there a red circle", "a", "what shape does the image contain ? yes or no"]
ENGINES = ["graphs", "onnxruntime", "openvino"]


def photos(seed: int, count: int) -> list[Image.Image]:
    """RGB images of several sizes, none the model's own."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(20, 90, (count, 2))
    return [
        Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((int(w), int(h)))
        for w, h in sizes
    ]


def run_stage(spec: Any, source: Path, kind: ArtifactKind, out: Path, **inputs: Any) -> dict[str, Any]:
    out.mkdir()
    scratch = out.with_name(f"{out.name}-scratch")
    scratch.mkdir()
    work = StageWork(out=out, scratch=scratch)
    config = spec.config(tune_seconds=0)  # a race's choices are the moment's, not the model's
    spec.run(config, StageInputs(source=Artifact(kind, "0", source), **inputs), work)
    return work.facts


def engines_of(graphs: Path, root: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The exported graphs, and the engine that each CPU engine's target gets, with the stage's facts."""
    folders: dict[str, tuple[Path, dict[str, Any]]] = {"graphs": (graphs, {})}
    for engine in ("onnxruntime", "openvino"):
        if engine_available(engine) is None:
            target = Target.model_validate({"name": "test", "engine": engine, "threads": 2})
            facts = run_stage(compile.SPEC, graphs, ArtifactKind.GRAPHS, root / engine, target=target)
            folders[engine] = (root / engine, facts)
    return folders


@pytest.fixture(scope="module")
def blip(tiny_blip_graphs: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    return engines_of(tiny_blip_graphs.folder, tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def clip(tiny_clip_graphs: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    return engines_of(tiny_clip_graphs.folder, tmp_path_factory.mktemp("clip"))


def folder_of(folders: dict[str, tuple[Path, dict[str, Any]]], engine: str) -> Path:
    if engine not in folders:
        pytest.skip(f"{engine} is not installed")
    return folders[engine][0]


@pytest.mark.parametrize("engine", ENGINES)
def test_blip_answers_as_generate_does(
    blip: dict[str, tuple[Path, dict[str, Any]]], tiny_blip: Path, engine: str
) -> None:
    pipeline = load_pipeline(folder_of(blip, engine))
    assert isinstance(pipeline, VqaPipeline)
    model: Any = load_checkpoint(tiny_blip).model
    processor = transformers.AutoImageProcessor.from_pretrained(tiny_blip, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_blip)
    expected = []
    images = photos(0, len(QUESTIONS))
    for image, question in zip(images, QUESTIONS, strict=True):
        inputs = tokenizer(question, return_tensors="pt")
        pixel_values = processor(image, return_tensors="pt").pixel_values
        with torch.no_grad():
            ids = model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                pixel_values=pixel_values,
                max_new_tokens=pipeline.manifest.generation.max_new_tokens,
                do_sample=False,
                num_beams=1,
            )
        expected.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    assert [pipeline.answer(*pair) for pair in zip(images, QUESTIONS, strict=True)] == expected
    features = pipeline.encode_images(images)
    assert pipeline.answer_batch(features, QUESTIONS) == expected
    assert len(set(expected)) > 1 or any(expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_clip_embeds_as_clip_model_does(
    clip: dict[str, tuple[Path, dict[str, Any]]], tiny_clip: Path, engine: str
) -> None:
    pipeline = load_pipeline(folder_of(clip, engine))
    assert isinstance(pipeline, DualEncoderPipeline)
    model: Any = load_checkpoint(tiny_clip).model
    processor = transformers.AutoImageProcessor.from_pretrained(tiny_clip, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_clip)
    images = photos(1, 3)
    inputs = tokenizer(QUESTIONS, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = model(**inputs, pixel_values=processor(images, return_tensors="pt").pixel_values)
    np.testing.assert_allclose(pipeline.embed_images(images), expected.image_embeds, atol=1e-5)
    np.testing.assert_allclose(pipeline.embed_texts(QUESTIONS), expected.text_embeds, atol=1e-5)
    probabilities = torch.softmax(expected.logits_per_image, dim=1)
    np.testing.assert_allclose(pipeline.classify(images, QUESTIONS), probabilities, atol=1e-4)


def test_every_attention_of_both_models_is_fused(
    blip: dict[str, tuple[Path, dict[str, Any]]], clip: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    for folders, layers in (
        (blip, {"vision_encoder": 2, "text_encoder": 4, "decoder": 4}),
        (clip, {"vision_encoder": 2, "text_encoder": 2}),
    ):
        facts = folders["onnxruntime"][1]["components"]
        assert {name: row["attentions_fused"] for name, row in facts.items()} == layers
