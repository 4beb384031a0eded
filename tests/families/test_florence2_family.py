"""Florence-2 through export and the runtime, against transformers' processor and generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import CLS, DEC, PAD, SEP, VOCABULARY, change_json, exported, photos, write_checkpoint
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.checkpoint import load_checkpoint
from vlm_edge.families.florence2 import TASKS
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.processing.text import TextEncoder
from vlm_edge.runtime import VqaPipeline, load_pipeline

FAMILY = FAMILIES["florence2"]
PROMPTS = ["<CAPTION>", "what color is it", "<REGION_TO_CATEGORY> red square"]
TOKENS = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 x 16 images become 2 x 2 cells and their mean: five image tokens."""
    config = transformers.Florence2Config(
        vision_config={
            "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
            "embed_dim": [16, 32], "depths": [1, 1], "num_heads": [2, 4], "num_groups": [2, 4], "window_size": 3,
            "projection_dim": 32, "mlp_ratio": 2.0,
        },
        text_config={
            "model_type": "bart", "d_model": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 48,
            "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": PAD, "bos_token_id": CLS,
            "eos_token_id": SEP, "decoder_start_token_id": SEP, "scale_embedding": True,
        },
        image_token_id=DEC, pad_token_id=PAD, bos_token_id=CLS, eos_token_id=SEP, decoder_start_token_id=SEP,
    )  # fmt: skip
    generation = {
        "decoder_start_token_id": SEP, "bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD,
        "forced_bos_token_id": CLS, "no_repeat_ngram_size": 3, "num_beams": 3, "max_new_tokens": TOKENS,
    }  # fmt: skip
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"height": 16, "width": 16}, "resample": 3,
                 "do_center_crop": False, "image_seq_length": 5}  # fmt: skip
    folder = write_checkpoint(
        tmp_path_factory.mktemp("florence2"),
        transformers.Florence2ForConditionalGeneration(config),
        processor,
        generation=generation,
    )
    change_json(
        folder / "tokenizer_config.json",
        model_max_length=1024,
        bos_token="[CLS]",
        eos_token="[SEP]",
        extra_special_tokens={"image_token": "[DEC]"},
    )
    return folder


@pytest.fixture(scope="module")
def graphs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return exported(checkpoint, tmp_path_factory.mktemp("florence2-graphs"))


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return transformers.Florence2Processor(
        CLIPImageProcessorPil.from_pretrained(checkpoint), transformers.AutoTokenizer.from_pretrained(checkpoint)
    )


@pytest.mark.parametrize("use_cache", [True, False])
def test_answers_are_generates(checkpoint: Path, graphs: Any, processor: Any, use_cache: bool) -> None:
    pipeline = load_pipeline(graphs[0], threads=1)
    assert isinstance(pipeline, VqaPipeline)
    actual = pipeline.answer_ids(pipeline.encode_images(photos()), PROMPTS)
    model: Any = transformers.Florence2ForConditionalGeneration.from_pretrained(checkpoint).eval()
    for image, prompt, row in zip(photos(), PROMPTS, actual, strict=True):
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        assert int((inputs["input_ids"] == DEC).sum()) == 5
        tokens = model.generate(**inputs, do_sample=False, num_beams=1, use_cache=use_cache)[0, 1:].tolist()
        assert row == (tokens[: tokens.index(SEP)] if SEP in tokens else tokens)
    assert max(map(len, actual)) == TOKENS
    assert all(row[0] == CLS for row in actual)


def test_export_checked_every_graph(graphs: Any) -> None:
    folder, facts = graphs
    assert list(facts["parity"]) == ["vision_encoder", "text_encoder", "decoder"]
    assert max(parity["max_relative_error"] for parity in facts["parity"].values()) < 1e-5
    assert facts["composed"]["questions_equal"] == 6
    manifest = read_manifest(folder)
    assert manifest.components["vision_encoder"].outputs["image_features"].shape == ("images", 5, 32)
    assert manifest.components["text_encoder"].outputs["encoder_attention_mask"].shape == (
        "batch",
        "5 + question_tokens",
    )
    assert manifest.components["decoder"].inputs["encoder_attention_mask"].shape == ("batch", "memory_tokens")


def test_prompts_are_the_processors(graphs: Any, processor: Any) -> None:
    assert {**processor.task_prompts_without_inputs, **processor.task_prompts_with_input} == TASKS
    text = read_manifest(graphs[0]).text
    assert text is not None
    encoder = TextEncoder(graphs[0], text)
    for prompt in (*processor.task_prompts_without_inputs, "<OPEN_VOCABULARY_DETECTION> a red {} circle", "blue"):
        expected = processor(images=photos(1)[0], text=prompt, return_tensors="np")["input_ids"][0, 5:]
        np.testing.assert_array_equal(encoder.encode([prompt])[0][0], expected)
    with pytest.raises(VlmEdgeError, match="the task <CAPTION> takes no further text"):
        encoder.encode(["<CAPTION> of a dog"])
    assert encoder.decode([CLS, 20, DEC, PAD, SEP]).split() == [encoder.decode([20]), "[DEC]"]


def test_attention_sites(checkpoint: Path) -> None:
    sites = FAMILY.attention_sites(load_checkpoint(checkpoint).model)
    assert [site.component for site in sites] == ["text_encoder"] * 2 + ["decoder"] * 4
    assert sum(site.role is AttentionRole.CROSS for site in sites) == 2


def test_prompts_leave_room_for_the_image(checkpoint: Path) -> None:
    text = FAMILY.text_processing(checkpoint)
    assert text is not None
    assert text.max_length == 48 - 5
    with torch.no_grad():
        model: Any = load_checkpoint(checkpoint).model
        assert model.get_image_features(torch.zeros(1, 3, 16, 16)).pooler_output.shape[1] == 5


def test_another_language_model_is_refused() -> None:
    config = {"text_config": {"model_type": "t5"}}
    with pytest.raises(VlmEdgeError, match="text_config: 't5' can't be exported; known: bart"):
        FAMILY.build(config)
