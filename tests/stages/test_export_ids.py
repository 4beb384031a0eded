"""Ids beyond a model's tables are found when it is exported, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from family_checkpoints import change_json
from tiny_families import TINY

from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.manifest import Component
from vlm_edge.stages.export import ExportConfig, _manifest, run
from vlm_edge.stages.export_ids import check_ids


def checked(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    exports = loaded.family.components(loaded.model, loaded.family.image_processing(folder))
    planned = {name: Component.model_construct(file=f"{name}.onnx", inputs={}, outputs={}) for name in exports}
    check_ids(folder, _manifest(loaded, planned), exports)


def rows(folder: Path) -> int:
    """The number of tokens that the tokenizer knows."""
    content = json.loads((folder / "tokenizer.json").read_text())
    ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
    return int(max(ids)) + 1


def add_tokens(folder: Path, count: int) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    first = rows(folder)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"] += [{"id": first + place, "content": f"<new{place}>", **flags} for place in range(count)]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["BLIP, questions", "LLaVA-1.5", "CLIP", "TrOCR", "BLIP-2, T5", "ViLT, questions"])
def test_tokens_beyond_the_embedding_table(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    TINY[name].write(folder)
    checked(folder)
    known = rows(folder)
    add_tokens(folder, 200)
    with pytest.raises(
        VlmEdgeError, match=rf"token '<new199>' has id {known + 199}, and the \w+'s embedding table has"
    ):
        checked(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("suppress_tokens", [5, 9999]), ("bad_words_ids", [[3, 9999]]), ("forced_eos_token_id", 9999)],
)
def test_settings_beyond_the_logits(setting: str, value: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    TINY["LLaVA-1.5"].write(folder)
    change_json(folder / "generation_config.json", **{setting: value})
    with pytest.raises(VlmEdgeError, match=f"generation setting {setting}: 9999, and the model chooses among"):
        checked(folder)


def test_the_number_of_rows_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    """The case that was found: two tokens more than the table has rows."""
    folder = tmp_path / "checkpoint"
    TINY["BLIP, questions"].write(folder)
    add_tokens(folder, 2)
    work = StageWork(out=tmp_path / "out", scratch=tmp_path / "scratch")
    work.out.mkdir()
    with pytest.raises(VlmEdgeError, match=r"token '<new1>' has id 129, and the \w+'s embedding table has 128 rows"):
        run(ExportConfig(), StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, folder)), work)
    assert not list(work.out.iterdir())
