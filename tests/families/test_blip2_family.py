"""BLIP-2: the Q-Former and OPT in both of its forms against transformers, and 32 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import byte_tokenizer
import pytest
import tiny_vlm
import transformers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.runtime import Request

MODEL = transformers.Blip2ForConditionalGeneration
SPECIAL = ("<image>",)
PROCESSOR = {
    "image_processor_type": "BlipImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
SIZES = [(40, 33), (30, 100), (20, 20)]
LANGUAGE: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
    "opt-350m": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
}


def config_of(vocabulary: int, text: dict[str, Any]) -> Any:
    tower = tiny_vlm.VISION | {"image_size": 32, "patch_size": 8}
    qformer = tiny_vlm.VISION | {"encoder_hidden_size": 24, "cross_attention_frequency": 2, "vocab_size": 40}
    return transformers.Blip2Config(
        vision_config=tower,
        qformer_config=qformer,
        text_config=tiny_vlm.TEXT | {"vocab_size": vocabulary} | text,
        num_query_tokens=5,
        image_token_index=byte_tokenizer.token_id(SPECIAL, "<image>"),
    )


def checkpoint_of(folder: Path, language: str = "opt") -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL)
    tiny_vlm.write_checkpoint(folder, MODEL(config_of(vocabulary, LANGUAGE[language])), PROCESSOR)
    return folder


@pytest.fixture(scope="module", params=list(LANGUAGE))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tiny_vlm.Exported:
    root = tmp_path_factory.mktemp(request.param)
    return tiny_vlm.exported(checkpoint_of(root / "checkpoint", request.param), root, MODEL)


def test_answers_are_generates(subject: tiny_vlm.Exported) -> None:
    images = tiny_vlm.photos(0, SIZES)
    tiny_vlm.check_answers(
        subject,
        [
            Request("what is it?", images[:1]),
            Request("hello"),
            Request("how many?", images),
            Request("which one?", images[1:]),
        ],
    )


def test_prompts_are_the_processors(subject: tiny_vlm.Exported) -> None:
    processor = transformers.Blip2Processor(
        image_processor=BlipImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        num_query_tokens=5,
    )

    def expected(images: Sequence[Any], question: str) -> Any:
        text = f"Question: {question} Answer:"
        return processor(images=images[0] if images else None, text=text, return_tensors="pt")

    tiny_vlm.check_inputs(subject, expected, SIZES[:1])


def test_component_differences_are_small(subject: tiny_vlm.Exported) -> None:
    tiny_vlm.check_facts(subject)


def test_attention_is_found_by_role(subject: tiny_vlm.Exported) -> None:
    sites = subject.family.attention_sites(subject.model)
    roles = [(site.component, site.role) for site in sites]
    assert roles.count(("connector", AttentionRole.SELF)) == 2
    assert roles.count(("connector", AttentionRole.CROSS)) == 1
    assert roles.count(("decoder", AttentionRole.SELF)) == 2


def test_t5_is_refused() -> None:
    text = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    with pytest.raises(VlmEdgeError, match="language model is a T5ForConditionalGeneration"):
        FAMILIES["blip-2"].decoder(MODEL(config_of(300, text)))  # type: ignore[attr-defined]
