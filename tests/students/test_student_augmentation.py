"""Shifts and mirrors of images, against numpy's padding and slicing."""

from __future__ import annotations

import numpy as np
import torch

from vlm_edge.students.augmentation import augment_images


def test_nothing_asked_for_changes_nothing() -> None:
    pixels = torch.randn(3, 3, 8, 6)
    assert torch.equal(augment_images(pixels, np.random.default_rng(0), shift=0.0, horizontal_flip=False), pixels)


def test_every_image_is_a_window_of_the_padded_one_and_all_shifts_occur() -> None:
    pixels = torch.randn(200, 2, 8, 12)
    moved = augment_images(pixels, np.random.default_rng(1), shift=0.25, horizontal_flip=False).numpy()
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (2, 2), (3, 3)), mode="edge")
    seen = set()
    for image, whole in zip(moved, padded, strict=True):
        places = [
            (top, left)
            for top in range(5)
            for left in range(7)
            if np.array_equal(image, whole[:, top : top + 8, left : left + 12])
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 35


def test_about_half_of_the_images_are_mirrored() -> None:
    pixels = torch.randn(200, 1, 4, 4)
    turned = augment_images(pixels, np.random.default_rng(2), shift=0.0, horizontal_flip=True)
    mirrored = (turned == pixels.flip(-1)).flatten(1).all(1)
    kept = (turned == pixels).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert 70 < int(mirrored.sum()) < 130


def test_the_draws_come_from_the_generator_alone() -> None:
    pixels = torch.randn(5, 3, 16, 16)
    first, again, other = (
        augment_images(pixels, np.random.default_rng(seed), shift=0.2, horizontal_flip=True) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
