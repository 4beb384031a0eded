"""Embeddings kept exactly, and their cosine and modality gap against plain numpy and a brute-force bootstrap."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vlm_edge.evaluation.comparison import embedding_fidelity, modality_gap
from vlm_edge.evaluation.outcomes import Embeddings, Matrix

COUNT, DIM = 60, 5
TEXT_ROWS = tuple((row,) if row % 3 else (row, COUNT + row // 3) for row in range(COUNT))


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def embeddings(image, text):
    return Embeddings(image=Matrix.of(image), text=Matrix.of(text), image_rows=tuple(range(COUNT)), text_rows=TEXT_ROWS)


def named(measurements):
    return {measurement.metric: measurement for measurement in measurements}


@pytest.fixture
def pair():
    """Image and text embeddings of two engines, the second a little off."""
    generator = np.random.default_rng(0)
    image = unit(generator.normal(size=(COUNT, DIM)) + 0.5).astype(np.float32)
    text = unit(generator.normal(size=(COUNT + COUNT // 3, DIM)) - 0.3).astype(np.float32)
    noisy = [unit(each + 0.1 * generator.normal(size=each.shape)).astype(np.float32) for each in (image, text)]
    return (image, text), tuple(noisy)


def test_a_matrix_comes_back_bit_for_bit():
    values = np.array([[1.1, -0.0, np.nan], [np.float32(1e-45), np.inf, 3e38]], np.float32)
    kept = Matrix.model_validate(json.loads(Matrix.of(values).model_dump_json())).array()
    assert kept.tobytes() == values.tobytes()
    assert Matrix.of(np.zeros((0, 4))).array().shape == (0, 4)
    with pytest.raises(ValueError, match="2 x 3 float32"):
        Matrix(rows=2, columns=3, data="AAAA")


def test_the_cosine_is_the_mean_of_both_modalities(pair):
    (image, text), (other_image, other_text) = pair
    found = named(
        embedding_fidelity(
            embeddings(image, text), embeddings(other_image, other_text), np.arange(COUNT), same=False, seed=0
        )
    )
    images = np.array([np.dot(a, b) for a, b in zip(image, other_image, strict=True)])
    every_text = np.array([np.dot(a, b) for a, b in zip(text, other_text, strict=True)])
    texts = np.array([every_text[list(rows)].mean() for rows in TEXT_ROWS])
    assert found["embedding_cosine[image]"].value == pytest.approx(images.mean(), rel=1e-6)
    assert found["embedding_cosine[text]"].value == pytest.approx(texts.mean(), rel=1e-6)
    assert found["embedding_cosine"].value == pytest.approx((images.mean() + texts.mean()) / 2, rel=1e-6)
    assert found["embedding_cosine"].n == COUNT
    assert all(each.low < each.value < each.high for each in found.values())


def test_the_gap_is_the_distance_of_the_means_and_its_interval_that_of_resampled_pairs(pair):
    (image, text), (other_image, other_text) = pair
    own = np.stack([text[list(rows)].mean(axis=0) for rows in TEXT_ROWS])
    other_own = np.stack([other_text[list(rows)].mean(axis=0) for rows in TEXT_ROWS])
    before, after = embeddings(image, text), embeddings(other_image, other_text)
    found = named(embedding_fidelity(before, after, np.arange(COUNT), same=False, seed=0))

    def gap(images, texts, rows):
        return np.linalg.norm(images[rows].mean(axis=0) - texts[rows].mean(axis=0))

    everything = np.arange(COUNT)
    assert found["modality_gap"].value == pytest.approx(gap(other_image, other_own, everything), rel=1e-5)
    change = gap(other_image, other_own, everything) - gap(image, own, everything)
    assert found["modality_gap_change"].value == pytest.approx(change, abs=1e-6)
    generator = np.random.default_rng(1)
    draws = np.array([gap(other_image, other_own, generator.integers(COUNT, size=COUNT)) for _ in range(2000)])
    half = (found["modality_gap"].high - found["modality_gap"].low) / 2
    assert half == pytest.approx(1.96 * draws.std(), rel=0.1)
    assert modality_gap(after, np.arange(COUNT), 0).value == found["modality_gap"].value


def test_an_engine_is_exactly_like_itself(pair):
    (image, text), _ = pair
    same = embeddings(image, text)
    found = named(embedding_fidelity(same, same, np.arange(COUNT), same=True, seed=0))
    for metric, exact in (("embedding_cosine", 1), ("embedding_cosine[image]", 1), ("modality_gap_change", 0)):
        assert (found[metric].low, found[metric].value, found[metric].high) == (exact, exact, exact)


def test_what_is_not_finite_is_like_nothing(pair):
    (image, text), _ = pair
    broken = image.copy()
    broken[:30] = np.nan
    broken[30, 2] = np.inf
    found = named(
        embedding_fidelity(embeddings(image, text), embeddings(broken, text), np.arange(COUNT), same=False, seed=0)
    )
    assert found["embedding_cosine[image]"].value == pytest.approx(29 / 60, rel=1e-5)
    assert all(np.isfinite([each.low, each.value, each.high]).all() for each in found.values())


def test_spaces_of_other_sizes_have_no_cosine(pair):
    (image, text), _ = pair
    found = named(
        embedding_fidelity(
            embeddings(image, text), embeddings(image[:, :3], text[:, :3]), np.arange(COUNT), same=False, seed=0
        )
    )
    assert list(found) == ["modality_gap", "modality_gap_change"]


def test_samples_of_one_group_are_drawn_together(pair):
    (image, text), (other_image, other_text) = pair
    before, after = embeddings(image, text), embeddings(np.repeat(other_image[::10], 10, axis=0), other_text)
    alone, together = (
        named(embedding_fidelity(before, after, groups, same=False, seed=0))["modality_gap"]
        for groups in (np.arange(COUNT), np.arange(COUNT) // 10)
    )
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
