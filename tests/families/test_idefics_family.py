"""IDEFICS: resampler, gated cross-attention to the last image and two tables, against transformers; 32 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import byte_tokenizer
import pytest
import tiny_vlm
import torch
import transformers
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from vlm_edge.families.base import AttentionRole
from vlm_edge.runtime import Request
from vlm_edge.runtime.cross_attention import visible_images

MODEL = transformers.IdeficsForVisionText2Text
SPECIAL = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
PROCESSOR = {
    "image_processor_type": "IdeficsImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
SIZES = [(40, 33), (30, 100), (20, 20)]


def checkpoint_of(folder: Path) -> Path:
    """The special tokens have a table of their own, as in the published models."""
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL)
    config = transformers.IdeficsConfig(
        **tiny_vlm.TEXT | {"num_hidden_layers": 4},
        vocab_size=vocabulary - 3,
        additional_vocab_size=3,
        cross_layer_interval=2,
        qk_layer_norms=True,
        use_resampler=True,
        alpha_initializer="ones",
        alpha_type="vector",
        vision_config={
            "embed_dim": 24,
            "image_size": 32,
            "patch_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        perceiver_config={
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 10,
            "qk_layer_norms_perceiver": True,
        },
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR)
    return folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> tiny_vlm.Exported:
    root = tmp_path_factory.mktemp("idefics")
    return tiny_vlm.exported(checkpoint_of(root / "checkpoint"), root, MODEL)


def test_answers_are_generates(subject: tiny_vlm.Exported) -> None:
    images = tiny_vlm.photos(0, SIZES)
    parted = "<s>first <image> then <image> and <image> all"
    tiny_vlm.check_answers(
        subject,
        [
            Request("what is it?", images[:1]),
            Request("hello"),
            Request("how many?", images),
            Request(images=images, prompt=parted),
        ],
    )


def test_prompts_and_masks_are_the_processors(subject: tiny_vlm.Exported) -> None:
    processor = transformers.IdeficsProcessor(
        image_processor=IdeficsImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
    )
    prompt = subject.pipeline.manifest.prompt
    assert prompt is not None

    def expected(images: Sequence[Any], question: str) -> Any:
        asked = f"{question.strip()}<end_of_utterance>\nAssistant:"
        first = ["User:", *images, asked] if images else [f"User:{asked}"]
        inputs = processor(text=[first], return_tensors="pt")
        row = inputs["input_ids"][0].tolist()
        seen = torch.from_numpy(visible_images(row, prompt, max(1, len(images))))
        assert torch.equal(inputs["image_attention_mask"][0].long(), seen)
        return inputs

    tiny_vlm.check_inputs(subject, expected, SIZES)


def test_component_differences_are_small(subject: tiny_vlm.Exported) -> None:
    tiny_vlm.check_facts(subject)


def test_gated_cross_attention_is_found(subject: tiny_vlm.Exported) -> None:
    sites = subject.family.attention_sites(subject.model)
    gated = [site.path for site in sites if site.role is AttentionRole.GATED_CROSS]
    assert gated == [f"model.gated_cross_attn_layers.{index}.cross_attn" for index in range(2)]
    assert sum(site.component == "decoder" for site in sites) == 6
    assert sum(site.component == "vision_encoder" for site in sites) == 2
