"""Checkpoints that every part of the suite uses: real architectures, tiny, with seeded random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("no-times", deadline=None)  # no test asserts a time, and a busy machine would fail one
settings.load_profile("no-times")


@dataclass(frozen=True)
class Exported:
    """What the export stage made of a checkpoint, and what it measured."""

    folder: Path
    facts: dict[str, Any]


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
    return export(tiny_blip, tmp_path_factory.mktemp("tiny-blip-graphs"))


@pytest.fixture(scope="session")
def tiny_captioner_graphs(tiny_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``tiny_captioner`` through the export stage. Do not write into it."""
    return export(tiny_captioner, tmp_path_factory.mktemp("tiny-captioner-graphs"))


@pytest.fixture(scope="session")
def tiny_clip_graphs(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """``tiny_clip`` through the export stage. Do not write into it."""
    return export(tiny_clip, tmp_path_factory.mktemp("tiny-clip-graphs"))


def export(checkpoint: Path, folder: Path) -> Exported:
    from vlm_edge.core.artifact import Artifact, ArtifactKind
    from vlm_edge.core.stage import StageInputs, StageWork
    from vlm_edge.stages.export import ExportConfig, run

    work = StageWork(out=folder / "out", scratch=folder / "scratch")
    work.out.mkdir()
    work.scratch.mkdir()
    run(ExportConfig(), StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, checkpoint)), work)
    return Exported(work.out, work.facts)
