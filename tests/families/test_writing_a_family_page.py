"""The family in docs/writing-a-family.md is loaded, exported and compared as it stands there."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import Family
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.stages.export import ExportConfig, run
from vlm_edge.zoo.create import randomize

PAGE = (Path(__file__).parents[2] / "docs" / "writing-a-family.md").read_text(encoding="utf-8")
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Family:
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class ChineseClip" in block)
    module = types.ModuleType("vlm_edge.families.chinese_clip")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "docs/writing-a-family.md", "exec"), module.__dict__)
    entry: Family = module.ChineseClip()
    monkeypatch.setitem(FAMILIES, entry.name, entry)
    return entry


@pytest.fixture
def checkpoint(tiny_clip: Path, tmp_path: Path) -> Path:
    """A tiny ChineseCLIPModel with tiny_clip's tokenizer and image processor."""
    config = transformers.ChineseCLIPConfig(
        text_config=TOWER | {"vocab_size": 128, "max_position_embeddings": 24, "type_vocab_size": 2, "pad_token_id": 0},
        vision_config=TOWER | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    model = transformers.ChineseCLIPModel(config)
    randomize(model, seed=2)
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_clip / name, folder / name)
    settings = json.loads((tiny_clip / "preprocessor_config.json").read_text())
    settings["image_processor_type"] = "ChineseCLIPImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.usefixtures("family")
def test_the_family_on_the_page_exports(checkpoint: Path, tmp_path: Path) -> None:
    work = StageWork(out=tmp_path / "out", scratch=tmp_path / "scratch")
    work.out.mkdir()
    run(ExportConfig(), StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, checkpoint)), work)
    manifest = read_manifest(work.out)
    assert (manifest.family, manifest.pipeline) == ("chinese-clip", "dual_encoder")
    assert work.facts["composed"]["max_relative_error"] < 1e-5


@torch.no_grad()
def test_its_padded_texts_are_transformers(family: Family, checkpoint: Path) -> None:
    model: Any = transformers.ChineseCLIPModel.from_pretrained(checkpoint, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = tokenizer(["a red circle in the photo", "blue"], padding=True, return_tensors="pt")
    ids, mask = texts["input_ids"], texts["attention_mask"]
    module = family.components(model, family.image_processing(checkpoint))["text_encoder"].module
    expected = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(module(ids, mask)[0], torch.nn.functional.normalize(expected, dim=-1))
    assert [site.component for site in family.attention_sites(model)] == ["text_encoder", "vision_encoder"]


def test_the_page_names_every_member() -> None:
    members = {name for name in (*Family.__annotations__, *vars(Family)) if not name.startswith("_")}
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert listed == members
