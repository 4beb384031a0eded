"""Sources of a model: the zoo, a folder, or the Hugging Face Hub. Importing this is cheap."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vlm_edge.errors import VlmEdgeError
from vlm_edge.names import near

ZOO_PREFIX = "zoo:"
ZOO_MODELS = Path(__file__).parents[1] / "zoo" / "models"
"""The folder of the shipped checkpoints; ``vlm_edge.zoo`` describes them."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py", "README.md", "LICENSE*", "NOTICE*")
"""Files that a checkpoint is read from. Code is text here: none is run unless ``--trust-remote-code`` says so."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def resolve_model(ref: str) -> Path:
    """The checkpoint folder that ``ref`` means: ``zoo:NAME``, a folder, or a Hub id ``owner/name`` (or ``@revision``).

    A Hub model is downloaded into the Hub's own cache (or taken from it), without pickled weights.

    Raises:
        VlmEdgeError: there is no such zoo model, folder or repository, or it can't be had now.
    """
    if ref.startswith(ZOO_PREFIX):
        return _zoo_folder(ref.removeprefix(ZOO_PREFIX))
    folder = Path(os.path.expanduser(ref))  # noqa: PTH111  (Path's raises for the home of nobody)
    if ref and os.path.isdir(folder):  # noqa: PTH112  (Path's raises for a name that is too long)
        return folder.resolve()
    if ref and os.path.exists(folder):  # noqa: PTH110
        raise VlmEdgeError(f"model: {ref}: is a file, not a folder", "give the folder that holds config.json")
    if not _HUB_ID.fullmatch(ref):
        raise VlmEdgeError(
            f"model: {ref}: no such folder", "give a folder, zoo:NAME (see `vlm-edge zoo`), or a Hub id as owner/name"
        )
    return _hub_folder(ref)


def _zoo_folder(name: str) -> Path:
    shipped = {path.parent.name: path.parent for path in ZOO_MODELS.glob("*/config.json")}
    if name not in shipped:
        raise VlmEdgeError(
            f"model: {ZOO_PREFIX}{name}: no such zoo model; {near(name, shipped)}", "`vlm-edge zoo` lists them"
        )
    return shipped[name]


def _hub_folder(ref: str) -> Path:
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx

    repository, _, revision = ref.partition("@")
    absent = f"model: {ref}: no such folder, and"
    try:
        folder = _snapshot(repository, revision or None, offline=constants.HF_HUB_OFFLINE)
        _refuse_pickled(ref, repository, revision or None, folder)
        return folder
    except errors.GatedRepoError as error:
        raise VlmEdgeError(
            f"model: {ref}: this Hub repository is gated", "accept its terms on its page, then `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise VlmEdgeError(
            f"model: {ref}: the Hub has no revision {revision!r} of {repository}", "see its Files page for revisions"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise VlmEdgeError(
            f"{absent} no such repository on the Hugging Face Hub",
            "check the name; a private repository needs `hf auth login`",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError) as error:
        raise VlmEdgeError(
            f"{absent} the Hugging Face Hub can't be reached, nor is the model in its cache on this machine",
            f"where there is a network: `hf download {repository}`, and give the folder that it prints",
        ) from error
    except (errors.HfHubHTTPError, ImportError, OSError, ValueError) as error:
        raise VlmEdgeError(
            f"{absent} it can't be downloaded from the Hugging Face Hub: {error}", "try again, or give a folder"
        ) from error


def _snapshot(repository: str, revision: str | None, *, offline: bool) -> Path:
    """The repository's files in the Hub's cache: downloaded, or, where no request can be made, those that are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = {"revision": revision, "allow_patterns": list(_HUB_FILES)}
    try:
        return Path(snapshot_download(repository, local_files_only=offline, **wanted))
    except (ImportError, ValueError) as error:  # httpx: a proxy that it can't use; nothing of the repository's
        if offline or "proxy" not in str(error).lower():
            raise
        try:
            return Path(snapshot_download(repository, local_files_only=True, **wanted))
        except LocalEntryNotFoundError:
            raise VlmEdgeError(
                f"model: {repository}: it is not in the Hub's cache on this machine, and the proxy that the "
                f"environment names (ALL_PROXY, HTTPS_PROXY) can't be used: {error}",
                "for a SOCKS proxy: pip install 'httpx[socks]'; or correct or unset these variables",
            ) from error


def _refuse_pickled(ref: str, repository: str, revision: str | None, folder: Path) -> None:
    """
    Raises:
        VlmEdgeError: the repository holds pickled weights alone, which were not downloaded.
    """
    from huggingface_hub import errors, list_repo_files
    from huggingface_hub.utils import httpx

    if any(folder.glob("*.safetensors")) or not (folder / "config.json").is_file():
        return
    try:
        pickled = [name for name in list_repo_files(repository, revision=revision) if name.endswith(_PICKLED)]
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, httpx.TransportError, ImportError, ValueError):
        return  # read_weights says that there are none
    if pickled:
        raise VlmEdgeError(
            f"model: {ref}: its weights are pickled only ({pickled[0]}), and loading a pickle can run any code in it",
            "if you trust the source, convert once where it is safe, and give the new folder: "
            f"transformers' MODEL_CLASS.from_pretrained({repository!r}).save_pretrained(NEW_FOLDER) writes safetensors",
        )
