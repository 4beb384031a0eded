"""docs/device.md: what a program loads to answer is what the page names."""

from __future__ import annotations

import re
import subprocess
import sys

from doc_pages import PAGES
from family_checkpoints import Exported

ANSWER = """\
import sys
before = set(sys.modules)
import vlm_edge
import numpy
vlm_edge.load_pipeline(sys.argv[1]).answer(numpy.zeros((8, 8, 3), numpy.uint8), "what color is it")
print(*{name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))
"""
MODULES = {"PIL": "pillow", "vlm_edge": ".", "typing_inspection": "typing-inspection"}
"""Modules whose packages have other names."""


def test_answering_loads_what_the_small_installation_holds(tiny_blip_graphs: Exported) -> None:
    command = [sys.executable, "-c", ANSWER, str(tiny_blip_graphs.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    page = PAGES["docs/device.md"].read_text(encoding="utf-8")
    installed = re.findall(r"^\$ pip install --no-deps (.*)$", page, re.MULTILINE)[0].split()
    public = {name for name in done.stdout.split() if not name.startswith("_")}
    assert {MODULES.get(name, name).replace("_", "-") for name in public} == set(installed)
