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
from family_checkpoints import CLS, DEC, PAD, POSITIONS, SEP, TOWER, VOCABULARY, exported, photos, write_checkpoint
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.cli.main import main
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.checkpoint import load_checkpoint
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import MatchingPipeline, load_pipeline
from vlm_edge.runtime.pipeline import build_pipeline, load_engines

TEXTS = ["a photo of a red circle", "blue", "is there a green triangle in this picture"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "encoder_hidden_size": 32}
    config = transformers.BlipConfig(
        text_config=TOWER | text | {"pad_token_id": PAD, "bos_token_id": DEC, "sep_token_id": SEP, "cls_token_id": CLS},
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
        image_text_hidden_size=24,
    )
    processor = {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}}
    return write_checkpoint(
        tmp_path_factory.mktemp("blip-itm"), transformers.BlipForImageTextRetrieval(config), processor
    )


@pytest.fixture(scope="module")
def graphs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return exported(checkpoint, tmp_path_factory.mktemp("blip-itm-graphs"))


def test_pairs_and_embeddings_are_transformers(checkpoint: Path, graphs: Any) -> None:
    folder, facts = graphs
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, MatchingPipeline)
    model = transformers.BlipForImageTextRetrieval.from_pretrained(checkpoint)
    pixels = BlipImageProcessorPil.from_pretrained(checkpoint)(photos(), return_tensors="pt")["pixel_values"]
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")} | {"pixel_values": pixels}
    with torch.no_grad():
        pairs = model(**inputs).itm_score.softmax(-1)[:, 1]
        cosines = model(**inputs, use_itm_head=False).itm_score
    np.testing.assert_allclose(pipeline.match(photos(), TEXTS), pairs, atol=1e-5)
    np.testing.assert_allclose(pipeline.embed_images(photos()) @ pipeline.embed_texts(TEXTS).T, cosines, atol=1e-5)
    assert max(parity["max_relative_error"] for parity in facts["parity"].values()) < 1e-5
    assert facts["composed"]["pairs"] == 6
    assert facts["composed"]["max_relative_error"] < 1e-4
    assert list(facts["parity"]) == ["vision_encoder", "text_encoder", "fusion"]


def test_a_padded_text_is_judged_as_alone(graphs: Any) -> None:
    pipeline: Any = load_pipeline(graphs[0], threads=1)
    together = pipeline.match(photos(), TEXTS)
    for index, (image, text) in enumerate(zip(photos(), TEXTS, strict=True)):
        np.testing.assert_allclose(pipeline.match([image], [text]), together[index : index + 1], atol=1e-6)
        np.testing.assert_allclose(pipeline.query(image, text, (), ()), together[index : index + 1], atol=1e-6)
    with pytest.raises(VlmEdgeError, match="3 rows of features for 1 texts"):
        pipeline.match(photos(), ["one"])


def test_without_a_text_encoder_there_are_no_embeddings(graphs: Any) -> None:
    manifest = read_manifest(graphs[0])
    components = {name: part for name, part in manifest.components.items() if name != "text_encoder"}
    manifest = manifest.model_copy(update={"components": components})
    pipeline: Any = build_pipeline(manifest, load_engines(graphs[0], manifest, threads=1), graphs[0])
    pipeline.rehearse(photos(1), ["red"])
    with pytest.raises(VlmEdgeError, match="scores pairs of an image and a text"):
        pipeline.embed_texts(["red"])


def test_cross_attention_is_found(checkpoint: Path) -> None:
    sites = FAMILIES["blip-matching"].attention_sites(load_checkpoint(checkpoint).model)
    assert [site.role for site in sites] == [AttentionRole.SELF, AttentionRole.CROSS] * 2
    assert {site.component for site in sites} == {"fusion"}


def test_vlm_edge_answer_ranks_texts(graphs: Any, tmp_path: Path) -> None:
    Image.fromarray(photos(1)[0]).save(tmp_path / "photo.png")
    arguments = ["answer", str(graphs[0]), str(tmp_path / "photo.png"), "--json"]
    result = CliRunner().invoke(main, [*arguments, "--label", "red", "--label", "a blue circle"])
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    pipeline: Any = load_pipeline(graphs[0], threads=1)
    for label, share in answer["probabilities"].items():
        assert share == pytest.approx(float(pipeline.match(photos(1), [label])[0]), abs=1e-6)
    assert answer["answer"] == next(iter(answer["probabilities"]))
    assert CliRunner().invoke(main, arguments).exit_code != 0
