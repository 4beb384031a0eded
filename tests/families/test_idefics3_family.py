"""Idefics3 and SmolVLM: tiles, their texts and the shuffled patches against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_vlm
import transformers
from family_checkpoints import Exported
from tiny_idefics3 import SPECIAL, TEMPLATE, checkpoint_of
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.processing.image_inputs import picture_of

SUBJECTS = ["Idefics3", "SmolVLM"]
SIZES = [(40, 33), (30, 100), (31, 31)]


def test_prompts_and_tiles_are_the_processors(subject: Exported) -> None:
    processor = transformers.Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        image_seq_len=4,
        chat_template=TEMPLATE,
    )
    tiny_vlm.check_processor(subject, processor, SIZES)


def test_a_table_that_is_also_the_output_layer_is_stored_once(subject: Exported) -> None:
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
