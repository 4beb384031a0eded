"""Where models come from. The Hub is a stand-in, but for the last tests: there it is offline for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny_instructblip
import tiny_llava
from huggingface_hub import errors
from huggingface_hub.utils import httpx

from vlm_edge.checkpoints.config import read_config
from vlm_edge.checkpoints.sources import ZOO_MODELS, resolve_model
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import find_family
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
             "chat_template.jinja", "modeling.py", "model.fp16.safetensors", "adapter_config.json", "spiece.model",
             "pytorch_model.bin", "model.pt", "tf_model.h5", "model.onnx", "model.ckpt", "weights.pkl"],
            allow_patterns=patterns,
        )
    )  # fmt: skip
    assert kept == [
        "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "vocab.txt",
        "chat_template.jinja", "modeling.py", "model.fp16.safetensors", "adapter_config.json", "spiece.model",
    ]  # fmt: skip


@pytest.mark.parametrize("write", [tiny_llava.checkpoint_of, tiny_instructblip.checkpoint_of])
def test_the_hub_gives_what_the_folder_gives(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model's prompt is its own chat template by Hub id too, not the family's fallback."""
    source, hub = tmp_path / "folder", tmp_path / "hub"
    write(source)

    def download(_: str, *, allow_patterns: list[str], **__: Any) -> str:
        files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        for name in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            (hub / name).parent.mkdir(parents=True, exist_ok=True)
            (hub / name).write_bytes((source / name).read_bytes())
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = resolve_model("owner/name")
    family = find_family(source, read_config(source))
    reads: list[Any] = [family.prompt, family.generation, family.text_processing, family.image_processing]
    for read in reads:
        assert read(folder) == read(source)
    assert {path.name for path in folder.iterdir()} == {path.name for path in source.iterdir()}


def test_a_repository_of_pickles_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    listed = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: listed)
    message = refusal("owner/name")
    assert "pickled only (pytorch_model.bin)" in message
    assert "from_pretrained('owner/name').save_pretrained(NEW_FOLDER)" in message
    listed[1] = "tf_model.h5"
    assert resolve_model("owner/name") == tmp_path  # read_weights says that there are none

    def offline(*_: Any, **__: Any) -> list[str]:
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    assert resolve_model("owner/name") == tmp_path


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
        (errors.HFValidationError("Cannot have -- or .. in repo_id"), "can't be downloaded"),
        (ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."), "SOCKS proxy"),
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
        "from vlm_edge.checkpoints.sources import resolve_model\n"
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
    script = "from vlm_edge.checkpoints.sources import resolve_model; print(resolve_model('owner/name'))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(snapshot)


@pytest.mark.parametrize("offline", ["0", "1"])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://x"])
def test_a_proxy_that_can_not_be_used(proxy: str, offline: str, tmp_path: Path) -> None:
    """A cached model needs no proxy; for any other model the error names the proxy."""
    revision = "0" * 40
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "snapshots" / revision).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    script = (
        "from vlm_edge.checkpoints.sources import resolve_model\n"
        "from vlm_edge.errors import VlmEdgeError\n"
        "print(resolve_model('owner/name'))\n"
        "try: resolve_model('owner/other')\n"
        "except VlmEdgeError as error: print(str(error).replace(chr(10), ' '))\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path), "ALL_PROXY": proxy}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    found, error = result.stdout.strip().splitlines()
    assert found == str(repository / "snapshots" / revision)
    assert ("can't be reached" if offline == "1" else "the proxy that the environment names") in error


def test_the_front_door_is_light() -> None:
    script = (
        "import sys, vlm_edge.checkpoints.sources; print(*(m for m in ('torch', 'transformers') if m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
