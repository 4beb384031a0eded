"""The Markdown pages that users read: README.md and docs/, their links, headings and code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def fences(path: Path, language: str) -> list[str]:
    """The code blocks of one language, in order."""
    return [body for kind, body in _FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def links(path: Path) -> list[tuple[Path, str]]:
    """Every link to a file of the repository: the file, and the heading in it (or nothing). Code holds no links."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", path.read_text(encoding="utf-8")))
    found = [link.partition("#") for link in _LINK.findall(text) if "://" not in link]
    return [((path.parent / name).resolve() if name else path, heading) for name, _, heading in found]


def anchor(title: str) -> str:
    """A heading as GitHub makes an anchor of it."""
    return re.sub(r"[^\w\- ]", "", title.lstrip("# ").strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings; a second heading of one name has a number behind it."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    names = list(map(anchor, re.findall(r"^#+ (.+)$", text, re.MULTILINE)))
    return {
        name if names[:place].count(name) == 0 else f"{name}-{names[:place].count(name)}"
        for place, name in enumerate(names)
    }
