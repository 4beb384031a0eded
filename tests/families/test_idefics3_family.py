"""Idefics3 and SmolVLM: tiles, their texts and the shuffled patches against transformers, and 32 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_tokenizer
import numpy as np
import onnx
import pytest
import tiny_vlm
import transformers
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.processing.pictures import picture_of
from vlm_edge.runtime import Request

MODEL = transformers.Idefics3ForConditionalGeneration
SPECIAL = (
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<|im_start|>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""HuggingFaceTB/SmolVLM-256M-Instruct's."""
PROCESSOR = {
    "image_processor_type": "Idefics3ImageProcessor",
    "size": {"longest_edge": 96},
    "max_image_size": {"longest_edge": 32},
    "do_image_splitting": True,
    "resample": 1,
    "image_mean": [0.5, 0.4, 0.5],
    "image_std": [0.5, 0.5, 0.6],
}
SIZES = [(40, 33), (30, 100), (31, 31)]


def checkpoint_of(folder: Path, model: Any = MODEL, **processor: Any) -> Path:
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL, template=TEMPLATE, bos=False)
    config = model.config_class(
        vision_config=tiny_vlm.VISION | {"image_size": 32, "patch_size": 8},
        text_config=tiny_vlm.TEXT | {"model_type": "llama", "vocab_size": vocabulary, "num_key_value_heads": 2},
        image_token_id=byte_tokenizer.token_id(SPECIAL, "<image>"),
        scale_factor=2,
        tie_word_embeddings=True,
    )
    tiny_vlm.write_checkpoint(folder, model(config), PROCESSOR | processor)
    return folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> tiny_vlm.Exported:
    root = tmp_path_factory.mktemp("idefics3")
    return tiny_vlm.exported(checkpoint_of(root / "checkpoint"), root, MODEL)


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


def test_prompts_and_tiles_are_the_processors(subject: tiny_vlm.Exported) -> None:
    processor = transformers.Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        image_seq_len=4,
        chat_template=TEMPLATE,
    )
    tiny_vlm.check_processor(subject, processor, SIZES)


def test_component_differences_are_small(subject: tiny_vlm.Exported) -> None:
    tiny_vlm.check_facts(subject)


def test_a_table_that_is_also_the_output_layer_is_stored_once(subject: tiny_vlm.Exported) -> None:
    graph = onnx.load(subject.folder / "decoder.onnx").graph
    vocabulary = subject.model.config.text_config.vocab_size
    assert [tuple(weight.dims) for weight in graph.initializer if vocabulary in weight.dims] == [(vocabulary, 32)]


@pytest.mark.parametrize("split", [True, False])
def test_smolvlm_reads_images_as_its_processor_does(split: bool, tmp_path: Path) -> None:
    folder = checkpoint_of(
        tmp_path, transformers.SmolVLMForConditionalGeneration, do_image_splitting=split, size={"longest_edge": 64}
    )
    family = FAMILIES["smolvlm"]
    spec, prompt = family.image_processing(folder), family.prompt(folder)
    assert prompt is not None
    processor = SmolVLMImageProcessorPil.from_pretrained(folder)
    for image in tiny_vlm.photos(3, SIZES):
        picture = picture_of(np.asarray(image), spec, prompt)
        expected = processor(images=image, return_tensors="np", return_row_col_info=True)
        np.testing.assert_allclose(picture.inputs["pixel_values"], expected["pixel_values"][0], atol=1 / 255)
        text = get_image_prompt_string(
            *(expected[name][0][0] for name in ("rows", "cols")), 4, SPECIAL[1], SPECIAL[0], SPECIAL[2]
        )
        assert picture.text == text


def test_tiles_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, max_image_size={"longest_edge": 48})
    with pytest.raises(VlmEdgeError, match=r"max_image_size\.longest_edge is 48, but the model's tiles are 32"):
        FAMILIES["idefics3"].image_processing(folder)
