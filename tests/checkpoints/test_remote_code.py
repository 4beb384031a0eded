"""No code of a checkpoint runs unless it is trusted, whichever file names it, and no library asks on stdin."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from family_checkpoints import change_json
from transformers import dynamic_module_utils

import vlm_edge
from vlm_edge.checkpoints.pretrained import SIDE_FILES, load_tokenizer
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.families.table import FAMILIES

PACKAGE = Path(vlm_edge.__file__).parent
FAMILY = FAMILIES["blip-vqa"]


@pytest.fixture
def hostile(tiny_blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with a file of code that leaves a mark when it runs; a question on stdin fails the test."""

    def asked(*_: Any) -> str:
        raise AssertionError("a library asked on stdin")

    monkeypatch.setattr(builtins, "input", asked)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(tiny_blip, tmp_path / "checkpoint"))
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).write_text('ran')\nclass Evil:\n    pass\n"
    )
    return folder


def ran(folder: Path) -> bool:
    return (folder.parent / "mark").exists() or (folder.parent / "modules").exists()


def test_one_door_to_from_pretrained() -> None:
    calls = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "pretrained.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr == "from_pretrained")
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "input")
    }
    assert calls == set()


@pytest.mark.parametrize("name", ["config.json", *SIDE_FILES])
@pytest.mark.parametrize("classes", [{"AutoConfig": "evil.Evil"}, {"AutoModel": "evil.Evil"}, ["evil.Evil", None]])
def test_code_is_refused_whichever_file_names_it(hostile: Path, name: str, classes: Any) -> None:
    path = hostile / name
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(values | {"auto_map": classes}))
    with pytest.raises(VlmEdgeError, match=r"auto_map: .*evil\.Evil.*it was not run") as caught:
        load_checkpoint(hostile)
    assert caught.value.message.startswith(str(path))
    assert not ran(hostile)


def test_an_unknown_model_type_with_code_of_its_own(hostile: Path) -> None:
    """The case that was found: transformers asked whether to run it, and `yes |` did. Each reader alone refuses it."""
    change_json(hostile / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    with pytest.raises(VlmEdgeError, match="not run"):
        load_checkpoint(hostile)
    FAMILY.text_processing(hostile)
    FAMILY.image_processing(hostile)
    assert not ran(hostile)


def test_a_tokenizers_code_is_never_run(hostile: Path) -> None:
    expected = load_tokenizer(hostile)("what color is it?").input_ids
    change_json(
        hostile / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    )
    assert load_tokenizer(hostile)("what color is it?").input_ids == expected
    assert not ran(hostile)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("gone.Model", r"no gone\.py in the folder"),
        ("owner/other--evil.Evil", r"is not FILE\.CLASS"),
        ("../evil.Evil", r"is not FILE\.CLASS"),
        ("evil", r"is not FILE\.CLASS"),
        ("evil.Evil", "can be built from it"),
    ],
)
def test_trusted_code_that_is_no_model(hostile: Path, code: str, message: str) -> None:
    change_json(hostile / "config.json", auto_map={"AutoModel": code})
    with pytest.raises(VlmEdgeError, match=message):
        load_checkpoint(hostile, trust_remote_code=True)


@pytest.mark.parametrize("name", SIDE_FILES)
@pytest.mark.parametrize("content", ["{", "[]", "\x00", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=range(5))
def test_malformed_side_files_are_told(hostile: Path, name: str, content: str) -> None:
    (hostile / name).write_text(content)
    with pytest.raises(VlmEdgeError) as caught:
        load_checkpoint(hostile)
    assert caught.value.message.startswith(str(hostile / name))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"model_max_length": "long"}),
        ("tokenizer_config.json", {"model_max_length": -5}),
        ("tokenizer_config.json", {"pad_token": {"content": 5}}),
        ("tokenizer_config.json", {"tokenizer_class": 7}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}),
        ("tokenizer_config.json", {"extra_special_tokens": 5}),
        ("preprocessor_config.json", {"size": "big"}),
    ],
)  # fmt: skip
def test_values_of_other_types_are_told(hostile: Path, name: str, values: dict[str, Any]) -> None:
    change_json(hostile / name, **values)
    read = FAMILY.image_processing if name.startswith("pre") else FAMILY.text_processing
    with pytest.raises(VlmEdgeError) as caught:
        read(hostile)
    assert caught.value.message.startswith(str(hostile))
