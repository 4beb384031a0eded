"""LLaVA: processors against transformers', and 32 tokens of every layout against ``generate``."""

from __future__ import annotations

import pytest
import tiny_vlm
import transformers
from tiny_llava import MODEL, TEMPLATE, checkpoint_of
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.runtime import Request


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> tiny_vlm.Exported:
    root = tmp_path_factory.mktemp("llava")
    checkpoint = checkpoint_of(root / "checkpoint", num_key_value_heads=2)
    return tiny_vlm.exported(checkpoint, root, MODEL)


def test_answers_are_generates(subject: tiny_vlm.Exported) -> None:
    images = tiny_vlm.photos(0, [(40, 33), (64, 100), (31, 90)])
    tiny_vlm.check_answers(
        subject,
        [
            Request("what is it?", images[:1]),
            Request("hello"),
            Request("how many are there ?", images),
            Request("", images[1:]),
        ],
    )


def test_prompts_are_apply_chat_template(subject: tiny_vlm.Exported) -> None:
    processor = transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    tiny_vlm.check_processor(subject, processor, [(40, 33), (64, 100), (31, 90)])


def test_component_differences_are_small(subject: tiny_vlm.Exported) -> None:
    tiny_vlm.check_facts(subject)
