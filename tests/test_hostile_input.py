"""Seeded attacks on everything that comes from outside: refused with words, or used as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from attack import ATTACKS, PROJECT

PAGE = PROJECT / "docs" / "security.md"
SHORT, WHOLE = 8, 340


def attacked(folder: Path, kind: str, first: int, count: int) -> list[dict[str, Any]]:
    """The rows of attack.py, which runs in a process of its own because it forks."""
    paths = [str(PROJECT), str(PROJECT / "tests" / "support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    script = PROJECT / "tests" / "support" / "attack.py"
    command = [sys.executable, str(script), str(folder), kind, str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == count
    return rows


def faults(rows: list[dict[str, Any]]) -> list[str]:
    bad = [row for row in rows if row["status"] not in ("ok", "refused")]
    return [f"{row['kind']} {row['seed']} ({row['change']}): {row['status']}: {row['detail'][:600]}" for row in bad]


@pytest.mark.parametrize("kind", ATTACKS)
def test_hostile_input_is_refused_or_harmless(tmp_path: Path, kind: str) -> None:
    rows = attacked(tmp_path, kind, 0, SHORT)
    assert faults(rows) == []
    assert any(row["change"] != "nothing" for row in rows)


@pytest.mark.slow
def test_three_thousand_hostile_inputs(tmp_path: Path) -> None:
    """The counts go into docs/security.md with ``VLM_EDGE_WRITE_SECURITY=1``."""
    lines, found = [], []
    for number, kind in enumerate(ATTACKS):
        (tmp_path / str(number)).mkdir()
        rows = attacked(tmp_path / str(number), kind, 0, WHOLE)
        found += faults(rows)
        ends = Counter(row["status"] for row in rows)
        bad = sum(ends.values()) - ends["ok"] - ends["refused"]
        lines.append(f"| {kind} | {len(rows)} | {ends['refused']} | {ends['ok']} | {bad} |")
    if os.environ.get("VLM_EDGE_WRITE_SECURITY"):
        text = PAGE.read_text(encoding="utf-8")
        table = "\n".join(["| input | tried | refused | used | faults |", "| --- | --- | --- | --- | --- |", *lines])
        PAGE.write_text(re.sub(r"\| input \| tried \|.*?(?=\n\n)", table, text, flags=re.DOTALL), encoding="utf-8")
    assert found == []


def test_the_sandbox_sees_every_kind_of_fault(tmp_path: Path) -> None:
    """The check itself can fail: what it must find is planted."""
    script = """
import json, os, sys, time
from pathlib import Path
from sandbox import run_in_sandbox
from vlm_edge.errors import VlmEdgeError

root = Path(sys.argv[1]).resolve()
inside, victim = root / "work", root / "victim"
for folder in (inside, victim):
    folder.mkdir()
(victim / "secret.txt").write_text("secret")

def refuse():
    raise VlmEdgeError("no", "mend it")

def busy():
    while True:
        pass

planted = {
    "ok": lambda: 1,
    "refused": refuse,
    "traceback": lambda: 1 / 0,
    "signal": os.abort,
    "hang": busy,
    "memory": lambda: len(bytearray(b"x") * 1_200_000_000),
    "outside read": lambda: (victim / "secret.txt").read_text(),
    "outside write": lambda: (root / "new").write_text("x"),
    "outside remove": lambda: (victim / "secret.txt").unlink(),
    "outside process": lambda: os.system("true"),
}
print(json.dumps({name: run_in_sandbox(body, inside, project=inside).status for name, body in planted.items()}))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests" / "support")])}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    seen = json.loads(done.stdout)
    assert seen == {name: name.split()[0] for name in seen}
    assert len(seen) == 10
