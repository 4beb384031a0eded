"""InstructBLIP: a Q-Former that reads the question with its own tokenizer, against transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
import torch
import transformers
from family_checkpoints import Exported
from tiny_instructblip import checkpoint_of
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.loading import load_checkpoint, save_checkpoint
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime import Request

SUBJECTS = ["InstructBLIP, Vicuna"]
SIZES = [(40, 33), (30, 100), (20, 20)]


def test_one_image_is_encoded_once_for_all_questions(subject: Exported) -> None:
    images = tiny_vlm.photos(0, SIZES)
    pipeline = subject.pipeline
    features = pipeline.encode_images(images[:1])
    questions = ["what is it?", "is it blue?"]
    answers = pipeline.answer_ids(features[[0, 0]], questions, max_new_tokens=tiny_vlm.NEW_TOKENS)
    assert answers == [tiny_vlm.generated(subject, Request(question, images[:1])) for question in questions]


def test_prompts_are_the_processors(subject: Exported) -> None:
    processor = transformers.InstructBlipProcessor(
        image_processor=BlipImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        qformer_tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint / "qformer_tokenizer"),
        num_query_tokens=5,
    )
    prompt = subject.pipeline.manifest.prompt
    assert prompt is not None
    assert prompt.instruction is not None
    reader = Tokenizer(subject.folder, prompt.instruction)

    def expected(images: Sequence[Any], question: str) -> Any:
        inputs = processor(images=images[0] if images else None, text=question, return_tensors="pt")
        assert torch.equal(inputs["qformer_input_ids"], torch.from_numpy(reader.encode([question])[0]))
        return inputs

    tiny_vlm.check_inputs(subject, expected, SIZES[:1])


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path)
    (folder / "qformer_tokenizer").rename(folder / "other")
    with pytest.raises(VlmEdgeError, match="no qformer_tokenizer, the tokenizer of the Q-Former"):
        FAMILIES["instructblip"].prompt(folder)


def test_a_derived_checkpoint_has_both_tokenizers(tmp_path: Path) -> None:
    """What prune and distill write can be exported again."""
    loaded = load_checkpoint(checkpoint_of(tmp_path / "source"))
    (tmp_path / "source" / "runs").mkdir()
    (tmp_path / "source" / "runs" / "tokens.json").write_text("{}")
    save_checkpoint(tmp_path / "derived", loaded.model, loaded)
    family = FAMILIES["instructblip"]
    assert family.prompt(tmp_path / "derived") == family.prompt(tmp_path / "source")
    assert [path.name for path in (tmp_path / "derived").iterdir() if path.is_dir()] == ["qformer_tokenizer"]
