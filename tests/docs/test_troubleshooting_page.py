"""docs/troubleshooting.md: each message that it explains is one that the code can give."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT

PAGE = PAGES["docs/troubleshooting.md"].read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)


def template(node: ast.expr) -> str:
    """A text literal with … in place of what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def templates(file: Path) -> list[str]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [template(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)]


@pytest.fixture(scope="module")
def known() -> str:
    return "\n".join(text for file in sorted((ROOT / "vlm_edge").rglob("*.py")) for text in templates(file))


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_has_the_message(message: str, known: str) -> None:
    assert re.sub(r"`` ?| ?``", "", message) in known


def test_every_message_is_followed_by_its_cause_and_the_next_step() -> None:
    assert len(MESSAGES) >= 30
    for entry in re.split(r"^#+ .*$", PAGE[PAGE.index("### ") :], flags=re.MULTILINE)[1:]:
        assert not entry.strip() or ("**Cause:**" in entry) == ("**Do:**" in entry)
