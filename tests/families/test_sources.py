"""Where models come from. The Hub is a stand-in, but for the last tests: there it is offline for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import httpx

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.sources import ZOO_MODELS, resolve_model
from vlm_edge.zoo import ZOO


def refusal(ref: str) -> str:
    with pytest.raises(VlmEdgeError) as caught:
        resolve_model(ref)
    assert caught.value.hint
    assert ref in caught.value.message
    return str(caught.value)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


@pytest.mark.usefixtures("no_hub")
def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert resolve_model("owner/name") == tmp_path / "owner" / "name"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/owner") == tmp_path / "owner"


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    "ref", ["./a/b", "/nowhere/model", "../x", "a/b/c", "model", "runs/", "~/nowhere", "", "a b/c", "C:\\x"]
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # where no such folder happens to be
    assert "no such folder" in refusal(ref)


@pytest.mark.usefixtures("no_hub")
def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    assert "is a file, not a folder" in refusal(str(tmp_path / "model.onnx"))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_zoo_model_resolves(name: str) -> None:
    assert resolve_model(f"zoo:{name}") == ZOO[name].folder
    assert (ZOO[name].folder / "config.json").is_file()


def test_every_shipped_checkpoint_is_in_the_table() -> None:
    assert {path.parent.name for path in ZOO_MODELS.glob("*/config.json")} == set(ZOO)


@pytest.mark.usefixtures("no_hub")
def test_an_unknown_zoo_name_gets_near_matches() -> None:
    assert "did you mean 'blip-easyvqa'" in refusal("zoo:blip-easyvq")
    assert "known: blip-easyvqa, clip-easyvqa" in refusal("zoo:llama")
    assert "no such zoo model" in refusal("zoo:")
    assert "no such zoo model" in refusal("zoo:../models/blip-easyvqa")


def test_a_hub_id_is_downloaded_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def download(repository: str, **options: Any) -> str:
        calls.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("Salesforce/blip-vqa-base") == tmp_path
    assert resolve_model("owner/name@v1.0") == tmp_path
    assert [(name, options["revision"]) for name, options in calls] == [
        ("Salesforce/blip-vqa-base", None),
        ("owner/name", "v1.0"),
    ]
    patterns = calls[0][1]["allow_patterns"]
    kept = list(
        huggingface_hub.utils.filter_repo_objects(
            ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "vocab.txt",
             "pytorch_model.bin", "model.pt", "tf_model.h5", "modeling.py", "model.onnx"],
            allow_patterns=patterns,
        )
    )  # fmt: skip
    assert kept == ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "vocab.txt"]


def http(error: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return error("says the Hub", response=httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/x")))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http(errors.RepositoryNotFoundError), "no such repository on the Hugging Face Hub"),
        (http(errors.GatedRepoError), "is gated"),
        (http(errors.RevisionNotFoundError), "no revision"),
        (errors.LocalEntryNotFoundError("not cached"), "can't be reached"),
        (http(errors.HfHubHTTPError), "can't be downloaded"),
        (errors.OfflineModeIsEnabled("offline"), "can't be reached"),
        (httpx.ConnectError("no route"), "can't be reached"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_says_becomes_a_next_step(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert message in refusal("owner/name")


def test_offline_for_real(tmp_path: Path) -> None:
    script = (
        "from vlm_edge.families.sources import resolve_model\n"
        "from vlm_edge.errors import VlmEdgeError\n"
        "try: resolve_model('owner/name')\n"
        "except VlmEdgeError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "can't be reached" in result.stdout
    assert "hf download owner/name" in result.stdout


def test_offline_takes_what_the_cache_holds(tmp_path: Path) -> None:
    revision = "0" * 40
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "hub" / "models--owner--name" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--name" / "refs" / "main").write_text(revision)
    script = "from vlm_edge.families.sources import resolve_model; print(resolve_model('owner/name'))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(snapshot)


def test_the_front_door_is_light() -> None:
    script = "import sys, vlm_edge.families.sources; print(*(m for m in ('torch', 'transformers') if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
