"""The renderer makes what the training relies on: reproducible images whose labels are true."""

import numpy as np
import pytest

from training.render import (
    COLOR_NAMES,
    COLORS,
    IMAGE_SIZE,
    MIN_BACKGROUND,
    SHAPES,
    RenderedBatch,
    coverage_from_pixels,
    draw_coverage,
    render_batch,
)


@pytest.fixture(scope="module")
def batch() -> RenderedBatch:
    return render_batch(300, seed=7)


def bounding_box(coverage: np.ndarray) -> tuple[int, int]:
    """Width and height of the covered pixels."""
    rows, columns = np.nonzero(coverage > 0.02)
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def test_same_seed_gives_same_images(batch: RenderedBatch) -> None:
    again = render_batch(300, seed=7)
    np.testing.assert_array_equal(batch.images, again.images)
    np.testing.assert_array_equal(batch.coverage, again.coverage)
    np.testing.assert_array_equal(batch.shapes, again.shapes)
    np.testing.assert_array_equal(batch.colors, again.colors)


def test_other_seed_gives_other_images(batch: RenderedBatch) -> None:
    assert not np.array_equal(batch.images, render_batch(300, seed=8).images)


def test_array_shapes_and_every_class_present(batch: RenderedBatch) -> None:
    assert batch.images.shape == (300, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert batch.images.dtype == np.uint8
    assert batch.coverage.shape == (300, IMAGE_SIZE, IMAGE_SIZE)
    assert set(batch.shapes.tolist()) == set(range(len(SHAPES)))
    assert set(batch.colors.tolist()) == set(range(len(COLOR_NAMES)))


def test_covered_pixels_have_the_pure_colour_and_others_one_pale_background(batch: RenderedBatch) -> None:
    for image, coverage, color in zip(batch.images, batch.coverage, batch.colors, strict=True):
        inside, outside = image[coverage == 1.0], image[coverage == 0.0]
        assert len(inside) > 0
        assert (inside == COLORS[COLOR_NAMES[color]]).all()
        assert (outside == outside[0]).all()
        assert outside[0].min() >= MIN_BACKGROUND


def test_coverage_agrees_with_the_pixels(batch: RenderedBatch) -> None:
    assert np.abs(coverage_from_pixels(batch.images) - batch.coverage).max() < 0.02


def test_sizes_match_those_of_easy_vqa(batch: RenderedBatch) -> None:
    boxes = np.array([bounding_box(coverage) for coverage in batch.coverage])
    assert boxes.min() >= 7
    assert boxes.max() <= 34


def test_circles_are_round_and_triangles_equilateral_with_the_base_below(batch: RenderedBatch) -> None:
    for coverage, label in zip(batch.coverage, batch.shapes, strict=True):
        width, height = bounding_box(coverage)
        if SHAPES[label] == "circle":
            assert abs(width - height) <= 1
        elif SHAPES[label] == "triangle":
            assert 0 <= width - height <= 0.2 * width
            rows = coverage.sum(axis=1)
            covered = rows[rows > 0]
            half = len(covered) // 2
            assert covered[half:].sum() > 2 * covered[:half].sum()


def test_rectangles_fill_their_box(batch: RenderedBatch) -> None:
    for coverage, label in zip(batch.coverage, batch.shapes, strict=True):
        if SHAPES[label] == "rectangle":
            width, height = bounding_box(coverage)
            assert (coverage > 0.005).sum() == width * height


def test_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'star'"):
        draw_coverage("star", np.random.default_rng(0))
