from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bench import Bench, build_bench, build_dual_bench


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """21 images, 84 questions."""
    return build_bench(tmp_path, 21)


@pytest.fixture
def dual_bench(tmp_path: Path) -> Bench:
    """20 images of two classes."""
    return build_dual_bench(tmp_path / "dual")
