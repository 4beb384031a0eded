"""Checkpoints that every part of the suite uses: real architectures, tiny, with seeded random weights."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BlipForQuestionAnswering folder: 32x32 images, width 32, 4 heads, 2 layers. Do not write into it."""
    from vlm_edge.zoo.create import create

    return create("blip-vqa", "tiny", tmp_path_factory.mktemp("tiny-blip"), seed=1)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel folder: 32x32 images, width 32, 4 heads, 2 layers. Do not write into it."""
    from vlm_edge.zoo.create import create

    return create("clip", "tiny", tmp_path_factory.mktemp("tiny-clip"), seed=1)
