"""Images as lists of patches: sizes against transformers', and how a batch is filled up."""

from __future__ import annotations

import numpy as np
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from vlm_edge.processing.image_inputs import image_inputs
from vlm_edge.processing.manifest import ImageProcessing, PatchRows
from vlm_edge.processing.patch_rows import filling_size, most_patches


def test_filling_sizes_are_transformers() -> None:
    generator = np.random.default_rng(0)
    sizes = [*generator.integers(1, 3000, (150, 2)).tolist(), [1, 16_000], [16_000, 1], [1, 1]]
    for height, width in sizes:
        for patch, most in ((16, 256), (14, 1), (8, 1024)):
            expected = get_image_size_for_max_num_patches(height, width, patch, most)
            assert filling_size((height, width), patch, most) == expected
            assert expected[0] * expected[1] <= most * patch * patch


def test_a_batch_is_filled_up_to_its_longest_list() -> None:
    rows = PatchRows(patch=4)
    spec = ImageProcessing(height=8, width=8, shortest_edge=8, longest_edge=20, multiple_of=4, tiles=rows)
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((8, 8), (8, 20), (12, 8))]
    inputs = image_inputs(images, spec)
    assert inputs["spatial_shapes"].tolist() == [[2, 2], [2, 5], [3, 2]]
    assert inputs["pixel_attention_mask"].sum(axis=1).tolist() == [4, 10, 6]
    assert inputs["pixel_values"].shape == (3, 10, 48)
    assert most_patches(spec, rows) == 10
    for index, image in enumerate(images):
        seen = inputs["pixel_attention_mask"][index].astype(bool)
        alone = image_inputs([image], spec)
        np.testing.assert_array_equal(inputs["pixel_values"][index][seen], alone["pixel_values"][0])
        assert not inputs["pixel_values"][index][~seen].any()
    last = inputs["pixel_values"][2][5].reshape(4, 4, 3)
    np.testing.assert_allclose(last, images[2][8:12, 4:8] / 255, atol=1e-6)


def test_the_longest_list() -> None:
    vilt = PatchRows(patch=32)
    spec = ImageProcessing(height=384, width=384, shortest_edge=384, longest_edge=639, multiple_of=32, tiles=vilt)
    assert most_patches(spec, vilt) == 12 * 19
    assert most_patches(spec, PatchRows(patch=16)) == 24 * 38
    assert most_patches(spec, PatchRows(patch=16, max_patches=256)) == 256
