"""Digests that tie a manifest to its folder: of all files, and of the manifest itself.

This finds damage and every edit that was not announced by writing the manifest again. It is no signature: who may write
the folder may write the manifest too, so take bundles from those whose models you would run.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_edge.digests import file_digests
from vlm_edge.errors import VlmEdgeError

MANIFEST_NAME = "manifest.json"
MOST_MANIFEST_BYTES = 1 << 26
AGAIN = "copy the whole folder again from where it was made, or make it again (`vlm-edge run`, `export` or `compile`)"


def listed_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a folder but its manifest, by name.

    Raises:
        VlmEdgeError: one of them is a link, or no regular file.
    """
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    names = [path.relative_to(folder).as_posix() for path in paths]
    names = [name for name in names if name != MANIFEST_NAME]
    require_plain_files(folder, names)
    return file_digests(folder, names)


def manifest_digest(content: Mapping[str, Any]) -> str:
    """Hex sha256 of the canonical JSON of a manifest's content, its own digest left out."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_manifest(path: Path) -> dict[str, Any]:
    """The JSON object of a manifest, its fields unchecked.

    Raises:
        VlmEdgeError: it is missing, a link, too large, or no JSON object.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise VlmEdgeError(f"{path}: no regular file", AGAIN)
        if status.st_size > MOST_MANIFEST_BYTES:
            raise VlmEdgeError(f"{path}: {status.st_size} bytes; a manifest has at most {MOST_MANIFEST_BYTES}", AGAIN)
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise VlmEdgeError(
            f"{path.parent}: no {MANIFEST_NAME}, so this is no exported model",
            "give the folder that `vlm-edge export` or `vlm-edge compile` wrote",
        ) from error
    except OSError as error:
        raise VlmEdgeError(f"{path}: can't be read: {error.strerror}", "see who may read it") from error
    except RecursionError as error:
        raise VlmEdgeError(f"{path}: nested too deeply", AGAIN) from error
    except ValueError as error:
        raise VlmEdgeError(f"{path}: not JSON: {error}", AGAIN) from error
    if not isinstance(content, dict):
        raise VlmEdgeError(f"{path}: JSON of a {type(content).__name__}, not of an object", AGAIN)
    return content


def require_plain_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse names that are no regular file in the folder, or are reached through a link.

    Raises:
        VlmEdgeError: one is not.
    """
    for name in names:
        place = folder
        for part in name.split("/"):
            place = place / part
            try:
                mode = place.lstat().st_mode
            except OSError as error:
                raise VlmEdgeError(f"{folder / MANIFEST_NAME}: no file {name} ({error.strerror})", AGAIN) from error
            if stat.S_ISLNK(mode):
                raise VlmEdgeError(f"{place}: a link, which may lead out of the folder", "put the file itself there")
        if not stat.S_ISREG(mode):
            raise VlmEdgeError(f"{place}: no regular file", AGAIN)


def require_unaltered(folder: Path, content: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Refuse a folder whose manifest (its JSON is ``content``) or one of its ``files`` was altered.

    Raises:
        VlmEdgeError: one of them was.
    """
    if content.get("digest") != manifest_digest(content):
        raise VlmEdgeError(f"{folder / MANIFEST_NAME}: it was altered since it was written", AGAIN)
    found = file_digests(folder, files)
    for name, digest in files.items():
        if found[name] != digest:
            raise VlmEdgeError(f"{folder / name}: it was altered since {MANIFEST_NAME} was written", AGAIN)
