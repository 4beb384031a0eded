"""Llama 3.2 Vision: canvases, who sees which image, and gated cross-attention against transformers, and 32 tokens."""

from __future__ import annotations

from pathlib import Path

import byte_tokenizer
import numpy as np
import pytest
import tiny_vlm
import transformers
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from vlm_edge.processing.canvas import _fitting_size, best_arrangement
from vlm_edge.processing.manifest import Prompt
from vlm_edge.runtime import Request
from vlm_edge.runtime.cross_attention import visible_images

MODEL = transformers.MllamaForConditionalGeneration
SPECIAL = ("<|image|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
TEMPLATE = (
    "{{- bos_token }}{% for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ content['text'] | trim }}{% endif %}{% endfor %}"
    "{{- '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""The part of meta-llama/Llama-3.2-11B-Vision-Instruct's for one turn."""
PROCESSOR = {
    "image_processor_type": "MllamaImageProcessor",
    "size": {"height": 32, "width": 32},
    "max_image_tiles": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
SIZES = [(40, 33), (30, 100), (20, 20)]


def checkpoint_of(folder: Path) -> Path:
    """The image token is the first behind the vocabulary, as in the published model."""
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, (*SPECIAL[1:], SPECIAL[0]), template=TEMPLATE)
    config = transformers.MllamaConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 3,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 24 * 3,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [2, 1], [3, 1]],
        },
        text_config=tiny_vlm.TEXT
        | {
            "num_hidden_layers": 4,
            "cross_attention_layers": [1, 3],
            "num_key_value_heads": 2,
            "vocab_size": vocabulary - 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        image_token_index=vocabulary - 1,
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR)
    return folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> tiny_vlm.Exported:
    root = tmp_path_factory.mktemp("mllama")
    return tiny_vlm.exported(checkpoint_of(root / "checkpoint"), root, MODEL)


def test_answers_are_generates(subject: tiny_vlm.Exported) -> None:
    images = tiny_vlm.photos(0, SIZES)
    parted = "<s>first <|image|> then <|image|><|image|> all"
    tiny_vlm.check_answers(
        subject,
        [
            Request("what is it?", images[:1]),
            Request("hello"),
            Request("how many?", images),
            Request(images=images, prompt=parted),
        ],
    )


def test_prompts_and_tiles_are_the_processors(subject: tiny_vlm.Exported) -> None:
    processor = transformers.MllamaProcessor(
        image_processor=MllamaImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        chat_template=TEMPLATE,
    )
    tiny_vlm.check_processor(subject, processor, SIZES)


def test_component_differences_are_small(subject: tiny_vlm.Exported) -> None:
    tiny_vlm.check_facts(subject)


def test_tokens_see_the_images_that_the_processor_says() -> None:
    prompt = Prompt(layouts=("",), image_token="<|image|>", image_token_id=9, image_tokens=1, image_reach="group")
    for row in ([1, 9, 2, 3], [9, 9, 2, 9, 9, 9, 4, 5], [1, 2], [9, 1, 9], [1, 9, 2, 9, 9]):
        count = row.count(9)
        sparse = get_cross_attention_token_mask(row, 9)
        dense = convert_sparse_cross_attention_mask_to_dense([sparse], [[1] * count], 1, len(row))[0, :, :, 0]
        np.testing.assert_array_equal(visible_images(row, prompt, count), dense)


def test_canvases_are_transformers() -> None:
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 400, (200, 2)).tolist():
        canvas = get_optimal_tiled_canvas(height, width, 4, 32)
        rows, columns = best_arrangement((height, width), 32, 4)
        assert (rows * 32, columns * 32) == canvas
        fitted = get_image_size_fit_to_canvas(height, width, *canvas, 32)
        assert _fitting_size((height, width), canvas, 32) == fitted
