"""Exports that all tests share, with other pytest-xdist workers too: exporting takes most of the suite's time."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from family_checkpoints import Exported, exported


def exported_once(
    factory: pytest.TempPathFactory, name: str, write: Callable[[Path], object], model_class: Any = None
) -> Exported:
    """The checkpoint that ``write`` puts into a folder, through the export stage; made by whichever worker asks first
    for ``name``, while the others wait. Do not write into it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / f"exported-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
    facts = folder / "facts.json"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not facts.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write(folder / "checkpoint")
            facts.write_text(json.dumps(exported(folder / "checkpoint", folder, model_class).facts))
    return Exported(folder / "checkpoint", folder / "out", json.loads(facts.read_text()), model_class, name)
