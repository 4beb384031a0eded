"""InstructBLIP: a Q-Former that reads the question with its own tokenizer, against transformers, and 32 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import byte_tokenizer
import pytest
import tiny_vlm
import torch
import transformers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.processing.text import TextEncoder
from vlm_edge.runtime import Request
from vlm_edge.zoo.tokenizer import write_tokenizer

MODEL = transformers.InstructBlipForConditionalGeneration
SPECIAL = ("<image>",)
PROCESSOR = {
    "image_processor_type": "BlipImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
SIZES = [(40, 33), (30, 100), (20, 20)]


def checkpoint_of(folder: Path) -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL)
    (folder / "qformer_tokenizer").mkdir()
    write_tokenizer(folder / "qformer_tokenizer", 120, 40)
    qformer = tiny_vlm.VISION | {"encoder_hidden_size": 24, "vocab_size": 120, "max_position_embeddings": 40}
    config = transformers.InstructBlipConfig(
        vision_config=tiny_vlm.VISION | {"image_size": 32, "patch_size": 8},
        qformer_config=qformer,
        text_config=tiny_vlm.TEXT | {"model_type": "llama", "vocab_size": vocabulary},
        num_query_tokens=5,
        image_token_index=byte_tokenizer.token_id(SPECIAL, "<image>"),
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR)
    return folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> tiny_vlm.Exported:
    root = tmp_path_factory.mktemp("instructblip")
    return tiny_vlm.exported(checkpoint_of(root / "checkpoint"), root, MODEL)


def test_answers_are_generates(subject: tiny_vlm.Exported) -> None:
    images = tiny_vlm.photos(0, SIZES)
    requests = [
        Request("what is it?", images[:1]),
        Request("hello"),
        Request("how many red shapes?", images),
        Request("which one?", images[1:]),
    ]
    tiny_vlm.check_answers(subject, requests)
    pipeline = subject.pipeline
    features = pipeline.encode_images(images[:1])
    questions = ["what is it?", "is it blue?"]
    answers = pipeline.answer_ids(features[[0, 0]], questions, max_new_tokens=tiny_vlm.NEW_TOKENS)
    assert answers == [subject.generate(Request(question, images[:1])) for question in questions]


def test_prompts_are_the_processors(subject: tiny_vlm.Exported) -> None:
    processor = transformers.InstructBlipProcessor(
        image_processor=BlipImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        qformer_tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint / "qformer_tokenizer"),
        num_query_tokens=5,
    )
    prompt = subject.pipeline.manifest.prompt
    assert prompt is not None
    assert prompt.instruction is not None
    reader = TextEncoder(subject.folder, prompt.instruction)

    def expected(images: Sequence[Any], question: str) -> Any:
        inputs = processor(images=images[0] if images else None, text=question, return_tensors="pt")
        assert torch.equal(inputs["qformer_input_ids"], torch.from_numpy(reader.encode([question])[0]))
        return inputs

    tiny_vlm.check_inputs(subject, expected, SIZES[:1])


def test_component_differences_are_small(subject: tiny_vlm.Exported) -> None:
    tiny_vlm.check_facts(subject)


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path)
    (folder / "qformer_tokenizer").rename(folder / "other")
    with pytest.raises(VlmEdgeError, match="no qformer_tokenizer, the tokenizer of the Q-Former"):
        FAMILIES["instructblip"].prompt(folder)
