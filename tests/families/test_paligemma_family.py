"""PaliGemma: a prefix that sees itself, Gemma 1 and 2, against transformers' processor and ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import byte_tokenizer
import pytest
import tiny_vlm
import transformers
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_edge.runtime import Request

MODEL = transformers.PaliGemmaForConditionalGeneration
SPECIAL = ("<image>",)
PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_seq_length": 16,
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
SIZES = [(40, 33), (64, 100), (31, 90)]
GEMMAS: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 1, "head_dim": 12},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 24,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 30.0,
        "final_logit_softcapping": 20.0,
    },
}


def checkpoint_of(folder: Path, gemma: str = "gemma") -> Path:
    """The image token has no row in the embedding table, as in PaliGemma 1."""
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL)
    config = transformers.PaliGemmaConfig(
        vision_config=tiny_vlm.VISION
        | {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 32},
        text_config=tiny_vlm.TEXT | {"model_type": gemma, "vocab_size": vocabulary - 1} | GEMMAS[gemma],
        image_token_index=byte_tokenizer.token_id(SPECIAL, "<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR, seed=1)
    return folder


@pytest.fixture(scope="module", params=["gemma", "gemma2"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tiny_vlm.Exported:
    root = tmp_path_factory.mktemp(request.param)
    return tiny_vlm.exported(checkpoint_of(root / "checkpoint", request.param), root, MODEL)


def test_answers_are_generates(subject: tiny_vlm.Exported) -> None:
    """Prompts of more tokens than Gemma 2's window are among them, and the prefix sees itself across it."""
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
    processor = transformers.PaliGemmaProcessor(
        image_processor=SiglipImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
    )

    def expected(images: Sequence[Any], question: str) -> Any:
        return processor(images=[images], text=["<image>" * len(images) + question], return_tensors="np")

    tiny_vlm.check_inputs(subject, expected, SIZES, fewest=1)


def test_component_differences_are_small(subject: tiny_vlm.Exported) -> None:
    tiny_vlm.check_facts(subject)
