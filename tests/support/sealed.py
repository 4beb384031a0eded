"""Manifests that were edited, and sealed again as whoever makes a bundle can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlm_edge.processing.sealing import MANIFEST_NAME, listed_files, manifest_digest


def read_json(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text())
    return content


def seal_again(folder: Path, content: dict[str, Any] | None = None, **changes: Any) -> None:
    """Write ``folder/manifest.json`` with these changes, and the digests of the files that lie there now."""
    content = {**(content or read_json(folder)), **changes}
    content["files"] = listed_files(folder)
    content["digest"] = manifest_digest(content)
    (folder / MANIFEST_NAME).write_text(json.dumps(content))
