"""A manifest is checked whole, and every fault is named with its place."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from vlm_edge.data.dataset import TaskKind
from vlm_edge.data.kinds import KINDS
from vlm_edge.data.manifest import read_dataset_manifest
from vlm_edge.errors import RecipeError, VlmEdgeError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["easy-vqa", "easy-vqa-zero-shot", "easy-vqa-retrieval"])
def test_the_shipped_manifests_are_read(name):
    manifest = read_dataset_manifest(ROOT / "calibration" / f"{name}.yaml")
    assert manifest.name == name
    assert manifest.licence == "MIT"
    assert set(manifest.splits) == {"calibration", "train", "test"}
    assert manifest.splits["calibration"].source_part == "train"
    assert {len(digest) for digest in manifest.digests.values()} == {64}


def test_every_kind_has_a_row():
    assert set(KINDS) == set(get_args(TaskKind))


def test_five_faults_are_reported_at_once(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(
        "name: x\nkind: vqqa\nlicense: MIT\nsource: {folder: a, package: easy-vqa}\n"
        "splits: {test: {form: test, samples: 0}, validation: {from: a}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        read_dataset_manifest(path)
    text = str(caught.value)
    for part in (
        "data.yaml: kind: input should be 'vqa', 'classification'",
        "data.yaml: license: unknown key; did you mean 'licence'?",
        "data.yaml: licence: missing",
        "data.yaml: source: give exactly one of `package`, `folder` and `generator`",
        "data.yaml: splits.test.form: unknown key; did you mean 'from'?",
        "data.yaml: splits.test.samples: input should be greater than or equal to 1 (got 0)",
        "data.yaml: splits.validation: input should be 'calibration', 'train' or 'test'",
    ):
        assert part in text
    assert len(caught.value.faults) >= 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "classification"}, "needs `labels`"),
        ({"kind": "classification", "labels": ["a", "a"], "prompts": ["{}"]}, "names a class twice"),
        ({"kind": "classification", "labels": ["a"], "prompts": ["a photo"]}, "one {} for the class"),
        ({"labels": ["a"]}, "`labels` belongs to kind classification"),
        ({"kind": "retrieval", "prompts": ["a {}"]}, "`prompts` belongs to kind classification"),
        ({"source": {"folder": "a", "version": "1"}}, "`version` belongs to a `package`"),
        ({"splits": {"test": {"from": "all"}, "train": {"from": "all"}}}, "which splits.test takes whole"),
        ({"splits": {}}, "splits"),
    ],
)
def test_contradictions_are_named(write_manifest, changes, message):
    with pytest.raises(RecipeError, match=r"data\.yaml") as caught:
        read_dataset_manifest(write_manifest(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["name: [", "- a\n- b\n", ""])
def test_what_is_no_mapping_is_refused(tmp_path, content):
    path = tmp_path / "data.yaml"
    path.write_text(content)
    with pytest.raises(VlmEdgeError, match=r"data\.yaml"):
        read_dataset_manifest(path)


def test_a_missing_manifest_names_an_example(tmp_path):
    with pytest.raises(VlmEdgeError, match=r"nowhere\.yaml") as caught:
        read_dataset_manifest(tmp_path / "nowhere.yaml")
    assert "easy-vqa.yaml" in (caught.value.hint or "")
