"""Positions for any grid against torch's own interpolation of the table and Pillow's, image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vlm_edge.families.parts.patch_positions import Weights, antialiased_weights, corner_weights, resized_positions

GRIDS = [(1, 1), (1, 30), (30, 1), (7, 7), (3, 20), (16, 5), (2, 2)]
CORNERS = {"mode": "bilinear", "align_corners": True}
ANTIALIASED = {"mode": "bilinear", "align_corners": False, "antialias": True}


def interpolated(table: Tensor, side: int, grid: tuple[int, int], how: dict[str, Any]) -> Tensor:
    plane = table.T.reshape(1, -1, side, side)
    return interpolate(plane, size=grid, **how)[0].flatten(1).T


@pytest.mark.parametrize(("weights", "how"), [(corner_weights, CORNERS), (antialiased_weights, ANTIALIASED)])
@pytest.mark.parametrize("side", [1, 2, 7, 12])
def test_positions_are_torchs(weights: Weights, how: dict[str, Any], side: int) -> None:
    table = torch.randn((side * side, 5), generator=torch.Generator().manual_seed(side))
    patches = max(rows * columns for rows, columns in GRIDS) + 2
    found = resized_positions(table, torch.tensor(GRIDS), patches, weights)
    assert found.isfinite().all()
    for image, grid in zip(found, GRIDS, strict=True):
        if grid == (30, 1) and "antialias" in how:
            continue  # torch 2.13 is wrong about one column of another height than the table's; see below
        expected = interpolated(table, side, grid, how)
        torch.testing.assert_close(image[: len(expected)], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("side", [2, 7, 12])
def test_smoothed_positions_are_pillows(side: int) -> None:
    table = torch.randn((side * side, 1), generator=torch.Generator().manual_seed(side))
    plane = Image.fromarray(table.view(side, side).numpy())
    found = resized_positions(table, torch.tensor(GRIDS), 112, antialiased_weights)
    for image, (rows, columns) in zip(found, GRIDS, strict=True):
        expected = np.asarray(plane.resize((columns, rows), Image.Resampling.BILINEAR)).reshape(-1, 1)
        np.testing.assert_allclose(image[: rows * columns], expected, atol=2e-5)
