"""Qwen2-VL and Qwen2.5-VL: sizes, patches, windows and positions against transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny_vlm
import torch
import transformers
from family_checkpoints import Exported
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.image_inputs import picture_of
from vlm_edge.processing.manifest import PatchGrid
from vlm_edge.processing.patches import fitting_size, grid_positions

SUBJECTS = ["Qwen2-VL", "Qwen2.5-VL"]
SIZES = [(40, 33), (30, 100), (9, 9)]


def test_prompts_and_patches_are_the_processors(subject: Exported) -> None:
    """Qwen2VLProcessor needs a video processor, which needs torchvision: its steps for images are done one by one."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(subject.checkpoint)
    images_of = Qwen2VLImageProcessorPil.from_pretrained(subject.checkpoint)

    def expected(images: Sequence[Any], question: str) -> Any:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = images_of(images=images, return_tensors="pt") if images else {}
        for grid in inputs.get("image_grid_thw", ()):
            text = text.replace("<|image_pad|>", "<|placeholder|>" * int(grid.prod() // 4), 1)
        text = text.replace("<|placeholder|>", "<|image_pad|>")
        return {**inputs, "input_ids": tokenizer(text, return_tensors="pt")["input_ids"]}

    tiny_vlm.check_inputs(subject, expected, SIZES)


def test_positions_and_windows_are_transformers(subject: Exported) -> None:
    manifest = subject.pipeline.manifest
    assert manifest.prompt is not None
    grid = manifest.image.tiles
    assert isinstance(grid, PatchGrid)
    image_token = manifest.prompt.image_token_id
    row, grids, sizes = [1, 2], [], []
    for image in tiny_vlm.photos(2, [*SIZES, (120, 40)]):
        picture = picture_of(np.asarray(image), manifest.image, manifest.prompt)
        thw = torch.tensor([[1, picture.grid[0] * 2, picture.grid[1] * 2]])
        places = get_vision_position_ids(thw, 2).reshape(-1, 4, 2)
        if grid.window is not None:
            index, bounds = get_vision_window_index(thw, spatial_merge_size=2, window_size=16, patch_size=4)
            places = places[index]
            assert picture.order is not None
            assert torch.equal(index[torch.from_numpy(picture.order)], torch.arange(len(index)))
            lengths = np.unique(picture.inputs["window_ids"], return_counts=True)[1]
            assert (np.cumsum(lengths) * 4).tolist() == bounds[1:].tolist()
        np.testing.assert_array_equal(picture.inputs["patch_positions"], places)
        row += [image_token] * (picture.grid[0] * picture.grid[1]) + [3, 4, 5]
        grids.append(picture.grid)
        sizes.append(thw[0])
    ids = torch.tensor([row])
    expected, _ = subject.model.model.get_rope_index(
        ids, (ids == image_token).int(), torch.stack(sizes), attention_mask=torch.ones_like(ids)
    )
    np.testing.assert_array_equal(grid_positions(row, image_token, grids), expected[:, 0])


def test_an_image_that_is_a_line_is_refused() -> None:
    grid = PatchGrid(patch=4, merge=2, frames=2, min_pixels=256, max_pixels=2304)
    with pytest.raises(VlmEdgeError, match="1 x 201 pixels; the model takes none whose sides differ by more than 200"):
        fitting_size((201, 1), grid)
