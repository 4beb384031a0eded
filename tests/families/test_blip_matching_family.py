"""BLIP's image-text matching through export and the runtime, against transformers' forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from family_checkpoints import Exported, least_cosine, photos
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.cli.main import main
from vlm_edge.core.stage import SilentProgress
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.tasks import TASKS
from vlm_edge.evaluation.tasks.base import Query
from vlm_edge.evaluation.tasks.retrieval import answer
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import MatchingPipeline, load_pipeline
from vlm_edge.runtime.capabilities import Batch
from vlm_edge.runtime.pipeline import build_pipeline, load_engines

SUBJECTS = ["BLIP, image-text matching"]
TEXTS = ["a photo of a red circle", "blue", "is there a green triangle in this picture"]


def test_pairs_and_embeddings_are_transformers(checkpoint: Path, subject: Exported, families_page: Any) -> None:
    folder, facts = subject.folder, subject.facts
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, MatchingPipeline)
    model = transformers.BlipForImageTextRetrieval.from_pretrained(checkpoint)
    pixels = BlipImageProcessorPil.from_pretrained(checkpoint)(photos(), return_tensors="pt")["pixel_values"]
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")} | {"pixel_values": pixels}
    with torch.no_grad():
        pairs = model(**inputs).itm_score.softmax(-1)[:, 1]
        cosines = model(**inputs, use_itm_head=False).itm_score
    np.testing.assert_allclose(pipeline.embed_images(photos()) @ pipeline.embed_texts(TEXTS).T, cosines, atol=1e-5)
    texts = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = model.text_encoder(**texts).last_hidden_state[:, 0]
        features = model.vision_model(pixels).last_hidden_state[:, 0]
        cosine = min(
            least_cosine(pipeline.embed_images(photos()), model.vision_proj(features)),
            least_cosine(pipeline.embed_texts(TEXTS), model.text_proj(states)),
        )
    error = float(np.abs(pipeline.match(photos(), TEXTS) - pairs.numpy()).max())
    families_page("the text encoder is two graphs, alone and with the image", cosine=cosine, score_error=error)
    assert facts["composed"]["pairs"] == 6
    assert facts["composed"]["max_relative_error"] < 1e-4
    assert list(facts["parity"]) == ["vision_encoder", "text_encoder", "fusion"]


def test_a_padded_text_is_judged_as_alone(subject: Exported) -> None:
    pipeline: Any = load_pipeline(subject.folder, threads=1)
    together = pipeline.match(photos(), TEXTS)
    for index, (image, text) in enumerate(zip(photos(), TEXTS, strict=True)):
        np.testing.assert_allclose(pipeline.match([image], [text]), together[index : index + 1], atol=1e-6)
        logits = pipeline.match_logits(pipeline.encode_images([image]), [text])
        np.testing.assert_allclose(answer(pipeline, Query(image, text)), logits, atol=1e-6)
    with pytest.raises(VlmEdgeError, match="3 rows of features for 1 texts"):
        pipeline.match(photos(), ["one"])


def test_without_a_text_encoder_there_are_no_embeddings(subject: Exported) -> None:
    manifest = read_manifest(subject.folder)
    components = {name: part for name, part in manifest.components.items() if name != "text_encoder"}
    manifest = manifest.model_copy(update={"components": components})
    pipeline: Any = build_pipeline(manifest, load_engines(subject.folder, manifest, threads=1), subject.folder)
    assert pipeline.capabilities == {"scores"}
    pipeline.dry_run(Batch(photos(1), ["red"]))
    with pytest.raises(VlmEdgeError, match="scores pairs of an image and a text"):
        pipeline.embed_texts(["red"])


def test_cross_attention_is_found(checkpoint: Path) -> None:
    sites = FAMILIES["blip-matching"].attention_sites(load_checkpoint(checkpoint).model)
    assert [site.role for site in sites] == [AttentionRole.SELF, AttentionRole.CROSS] * 2
    assert {site.component for site in sites} == {"fusion"}


def test_vlm_edge_answer_ranks_texts(subject: Exported, tmp_path: Path) -> None:
    Image.fromarray(photos(1)[0]).save(tmp_path / "photo.png")
    arguments = ["answer", str(subject.folder), str(tmp_path / "photo.png"), "--json"]
    result = CliRunner().invoke(main, [*arguments, "--label", "red", "--label", "a blue circle"])
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    pipeline: Any = load_pipeline(subject.folder, threads=1)
    for label, share in answer["probabilities"].items():
        assert share == pytest.approx(float(pipeline.match(photos(1), [label])[0]), abs=1e-6)
    assert answer["answer"] == next(iter(answer["probabilities"]))
    assert CliRunner().invoke(main, arguments).exit_code != 0


def test_retrieval_ranks_by_the_models_pairs(checkpoint: Path, subject: Exported, tmp_path: Path) -> None:
    """Every caption of every image, judged by transformers: its logit for "match" plus the cosine."""
    samples = []
    for number, (image, text) in enumerate(zip(photos(), TEXTS, strict=True)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        samples.append(Sample(str(number), tmp_path / f"{number}.png", text, (text,)))
    dataset = Dataset("three", "retrieval", "test", tuple(samples), "0")
    rows = TASKS["retrieval"].run(subject.pipeline, dataset, SilentProgress())
    model = transformers.BlipForImageTextRetrieval.from_pretrained(checkpoint)
    pixels = BlipImageProcessorPil.from_pretrained(checkpoint)(photos(), return_tensors="pt")["pixel_values"]
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        scores = torch.stack(
            [model(**inputs, pixel_values=row.expand(3, -1, -1, -1)).itm_score[:, 1] for row in pixels]
        )
        scores = scores + model(**inputs, pixel_values=pixels, use_itm_head=False).itm_score
    assert list(rows.predictions) == [TEXTS[column] for column in scores.argmax(1)]
    assert rows.scores["recall_at_1[text-to-image]"] == (scores.argmax(0) == torch.arange(3)).float().tolist()
