"""Checkpoints that every part of the suite uses: real architectures, tiny, with seeded random weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from family_checkpoints import Exported

# No deadline: a busy machine would miss one. Fixed examples: a commit that passes once passes again. New examples are
# drawn by `make test-slow`, with --hypothesis-profile=random.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Logs of faults go below this folder, not below the user's."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BlipForQuestionAnswering folder: 32x32 images, width 32, 4 heads, 2 layers. Do not write into it."""
    from vlm_edge.zoo.create import create

    return create("blip-vqa", "tiny", tmp_path_factory.mktemp("tiny-blip"), seed=1)


@pytest.fixture(scope="session")
def tiny_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BlipForConditionalGeneration folder: 32x32 images, width 32, 4 heads, 2 layers. Do not write into it."""
    from vlm_edge.zoo.create import create

    return create("blip-captioning", "tiny", tmp_path_factory.mktemp("tiny-captioner"), seed=1)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel folder: 32x32 images, width 32, 4 heads, 2 layers. Do not write into it."""
    from vlm_edge.zoo.create import create

    return create("clip", "tiny", tmp_path_factory.mktemp("tiny-clip"), seed=1)


@pytest.fixture(scope="session")
def tiny_blip_graphs(tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``tiny_blip`` through the export stage. Do not write into it."""
    return graphs_of(tiny_blip, tmp_path_factory, "tiny-blip")


@pytest.fixture(scope="session")
def tiny_captioner_graphs(tiny_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``tiny_captioner`` through the export stage. Do not write into it."""
    return graphs_of(tiny_captioner, tmp_path_factory, "tiny-captioner")


@pytest.fixture(scope="session")
def tiny_clip_graphs(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``tiny_clip`` through the export stage. Do not write into it."""
    return graphs_of(tiny_clip, tmp_path_factory, "tiny-clip")


def graphs_of(checkpoint: Path, factory: pytest.TempPathFactory, name: str) -> Exported:
    from shared_exports import exported_once

    return exported_once(factory, name, lambda folder: shutil.copytree(checkpoint, folder))
