"""Llama 3.2 Vision: canvases, and who sees which image, against transformers."""

from __future__ import annotations

import numpy as np
import tiny_vlm
import transformers
from family_checkpoints import Exported
from tiny_mllama import TEMPLATE
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from vlm_edge.processing.manifest import Prompt
from vlm_edge.processing.tiles import _fitting_size, best_arrangement
from vlm_edge.runtime.generate import visible_images

SUBJECTS = ["Mllama (Llama 3.2 Vision)"]
SIZES = [(40, 33), (30, 100), (20, 20)]


def test_prompts_and_tiles_are_the_processors(subject: Exported) -> None:
    processor = transformers.MllamaProcessor(
        image_processor=MllamaImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        chat_template=TEMPLATE,
    )
    tiny_vlm.check_processor(subject, processor, SIZES)


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
