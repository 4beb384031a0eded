"""LLaVA-NeXT: tiles, padding and row ends against transformers, and 32 tokens against ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_tokenizer
import pytest
import tiny_vlm
import transformers
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.runtime import Request

MODEL = transformers.LlavaNextForConditionalGeneration
SPECIAL = ("<image>",)
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] if content['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% endif %}{% endfor %}"
)
"""llava-hf/llava-v1.6-mistral-7b-hf's, for one turn."""
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
PROCESSOR = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "image_grid_pinpoints": PINPOINTS,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
SIZES = [(40, 33), (64, 100), (31, 200), (20, 20)]


def checkpoint_of(folder: Path, **processor: Any) -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL, template=TEMPLATE)
    config = transformers.LlavaNextConfig(
        vision_config=tiny_vlm.VISION
        | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 16},
        text_config=tiny_vlm.TEXT
        | {"model_type": "mistral", "vocab_size": vocabulary, "num_key_value_heads": 2, "sliding_window": 64},
        image_token_index=byte_tokenizer.token_id(SPECIAL, "<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR | processor)
    return folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> tiny_vlm.Exported:
    root = tmp_path_factory.mktemp("llava-next")
    return tiny_vlm.exported(checkpoint_of(root / "checkpoint"), root, MODEL)


def test_answers_are_generates(subject: tiny_vlm.Exported) -> None:
    """Prompts of more tokens than the sliding window sees are among them."""
    images = tiny_vlm.photos(0, SIZES)
    tiny_vlm.check_answers(
        subject,
        [
            Request("what is it?", images[2:3]),
            Request("hello"),
            Request("how many?", images),
            Request("which one?", images[1:3]),
        ],
    )


def test_prompts_and_tiles_are_the_processors(subject: tiny_vlm.Exported) -> None:
    processor = transformers.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    tiny_vlm.check_processor(subject, processor, SIZES)


def test_component_differences_are_small(subject: tiny_vlm.Exported) -> None:
    tiny_vlm.check_facts(subject)


def test_resolutions_that_differ_are_refused(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path / "other", image_grid_pinpoints=PINPOINTS[:2])
    with pytest.raises(VlmEdgeError, match=r"image_grid_pinpoints: config\.json and preprocessor_config\.json differ"):
        FAMILIES["llava-next"].image_processing(folder)
