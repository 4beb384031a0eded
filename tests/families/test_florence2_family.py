"""Florence-2 through export and the runtime, against transformers' processor and generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import CLS, DEC, PAD, SEP, Exported, check_vqa_answers, photos
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.florence2 import TASKS
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime import VqaPipeline

SUBJECTS = ["Florence-2"]
FAMILY = FAMILIES["florence2"]
PROMPTS = ["<CAPTION>", "what color is it", "<REGION_TO_CATEGORY> red square"]


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return transformers.Florence2Processor(
        CLIPImageProcessorPil.from_pretrained(checkpoint), transformers.AutoTokenizer.from_pretrained(checkpoint)
    )


def test_answers_are_generates(subject: Exported, processor: Any, families_page: Any) -> None:
    assert isinstance(subject.pipeline, VqaPipeline)

    def asked(image: Any, prompt: str) -> dict[str, Any]:
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        assert int((inputs["input_ids"] == DEC).sum()) == 5
        return {**inputs, "num_beams": 1}

    actual = check_vqa_answers(subject, PROMPTS, asked)
    assert all(row[0] == CLS for row in actual)
    families_page("decoded greedily, where its own settings say three beams; boxes stay location tokens", tokens=actual)


def test_export_checked_every_graph(subject: Exported) -> None:
    folder, facts = subject.folder, subject.facts
    assert list(facts["parity"]) == ["vision_encoder", "text_encoder", "decoder"]
    assert facts["composed"]["questions_equal"] == 6
    manifest = read_manifest(folder)
    assert manifest.components["vision_encoder"].outputs["image_features"].shape == ("images", 5, 32)
    assert manifest.components["text_encoder"].outputs["encoder_attention_mask"].shape == (
        "batch",
        "5 + question_tokens",
    )
    assert manifest.components["decoder"].inputs["encoder_attention_mask"].shape == ("batch", "memory_tokens")


def test_prompts_are_the_processors(subject: Exported, processor: Any) -> None:
    assert {**processor.task_prompts_without_inputs, **processor.task_prompts_with_input} == TASKS
    text = read_manifest(subject.folder).text
    assert text is not None
    encoder = Tokenizer(subject.folder, text)
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
