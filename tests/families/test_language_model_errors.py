"""What a user is told when a language model's checkpoint can't be exported, and that nothing half written stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_llava import checkpoint_of
from transformers import dynamic_module_utils

from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import load_checkpoint, save_checkpoint
from vlm_edge.stages.export import ExportConfig, run


def rewritten(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def text_rewritten(**changes: Any) -> Callable[[Path], None]:
    """The language model's part of config.json."""
    return lambda folder: rewritten(
        "config.json", text_config=json.loads((folder / "config.json").read_text())["text_config"] | changes
    )(folder)


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def another_language_model(folder: Path) -> None:
    """The language model's own keys stay, and its class becomes one that llm.py does not know."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_type"] = "olmo"
    (folder / "config.json").write_text(json.dumps(config))


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "text only": (
        rewritten("config.json", architectures=["LlamaForCausalLM"]),
        r"unknown architecture 'LlamaForCausalLM'.*text-generation",
    ),
    "another task": (
        rewritten("config.json", architectures=["LlavaForQuestionAnswering"]),
        r"unknown architecture 'LlavaForQuestionAnswering'; did you mean '[A-Z]\w+ForQuestionAnswering'",
    ),
    "no image processor": (removed("preprocessor_config.json"), "no usable image processor"),
    "no tokenizer": (removed("tokenizer.json"), r"no tokenizer\.json"),
    "no end token": (
        lambda folder: (
            rewritten("generation_config.json", eos_token_id=[])(folder),
            text_rewritten(eos_token_id=None)(folder),
        ),
        "no eos_token_id, so no answer would end",
    ),
    "template without the image": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][-1]['text'] }}"),
        "expected the question once and '<image>' 1 times",
    ),
    "broken template": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"),
        "the chat template can't be run",
    ),
    "own code": (
        rewritten("config.json", auto_map={"AutoModel": "own.OwnModel"}),
        r"auto_map: the model is built by code that comes with it \(own\.OwnModel\).*it was not run",
    ),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return checkpoint_of(tmp_path / "checkpoint")


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_are_told_and_leave_nothing(fault: str, checkpoint: Path, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    change(checkpoint)
    work = StageWork(out=tmp_path / "out", scratch=tmp_path / "scratch")
    work.out.mkdir()
    with pytest.raises(VlmEdgeError, match=message):
        run(ExportConfig(), StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, checkpoint)), work)
    assert not list(work.out.iterdir())


def test_trusted_code_builds_the_model(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    native = load_checkpoint(checkpoint)
    checkpoint = tmp_path / "own"
    save_checkpoint(checkpoint, native.model, native)  # such a checkpoint carries its own class's names
    rewritten("config.json", auto_map={"AutoModel": "own.OwnModel"})(checkpoint)
    (checkpoint / "own.py").write_text(
        "from transformers import LlavaForConditionalGeneration\n"
        "class OwnModel(LlavaForConditionalGeneration):\n"
        "    pass\n"
    )
    with pytest.raises(VlmEdgeError, match="not run"):
        load_checkpoint(checkpoint)
    assert not (tmp_path / "modules").exists()
    loaded = load_checkpoint(checkpoint, trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnModel"
    assert loaded.family.name == "llava"
