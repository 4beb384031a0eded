"""Image tokens pooled to a student's grid, against plain numpy means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.errors import VlmEdgeError
from vlm_edge.students.tokens import pool_tokens, token_grid


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_the_grid_of_a_vits_tokens_is_found_from_their_number(rows: int, columns: int, patch: int) -> None:
    height, width = rows * patch, columns * patch
    assert token_grid(rows * columns, height, width) == (rows, columns, False)
    if rows * columns > 1:
        assert token_grid(rows * columns + 1, height, width) == (rows, columns, True)


def test_tokens_that_are_no_grid_are_refused() -> None:
    with pytest.raises(VlmEdgeError, match="32 image tokens are no grid over images of 64x64"):
        token_grid(32, 64, 64)


@pytest.mark.parametrize("class_token", [True, False])
def test_cells_are_block_means_and_token_0_is_the_class_token_or_the_mean(class_token: bool) -> None:
    patches = np.random.default_rng(0).normal(size=(2, 6, 4, 5)).astype(np.float32)
    first = np.full((2, 1, 5), 7, dtype=np.float32)
    tokens = patches.reshape(2, 24, 5)
    given_tokens = torch.from_numpy(np.concatenate([first, tokens], axis=1) if class_token else tokens)
    pooled = pool_tokens(given_tokens, (60, 40), (3, 2)).numpy()
    wanted = patches.reshape(2, 3, 2, 2, 2, 5).mean(axis=(2, 4)).reshape(2, 6, 5)
    np.testing.assert_allclose(pooled[:, 1:], wanted, atol=1e-6)
    np.testing.assert_allclose(pooled[:, :1], first if class_token else tokens.mean(1, keepdims=True), atol=1e-6)


def test_a_grid_that_is_the_teachers_own_is_left_alone() -> None:
    tokens = torch.randn(2, 17, 3)
    assert torch.equal(pool_tokens(tokens, (32, 32), (4, 4)), tokens)
