from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are remembered in a folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes an image folder part with the given metadata rows (or raw lines); returns the part's folder."""

    def write(rows: Sequence[dict[str, Any] | str], part: str = "test", images: int = 4) -> Path:
        folder = tmp_path / "images" / part
        folder.mkdir(parents=True)
        for number in range(images):
            Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(folder / f"{number}.png")
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``data.yaml`` for the folder ``images``; keyword arguments replace or add keys."""

    def write(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "name": "toy",
            "kind": "vqa",
            "source": {"folder": "images"},
            "licence": "CC0",
            "splits": {"test": {"from": "test"}},
        }
        content.update(changes)
        path = tmp_path / "data.yaml"
        path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        return path

    return write
