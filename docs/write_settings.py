"""Write the settings of every stage into docs/recipe.md, from their configs: ``python docs/write_settings.py``."""

from __future__ import annotations

import re
from pathlib import Path

from vlm_edge.cli.stages import settings_of
from vlm_edge.stages import STAGES

PAGE = Path(__file__).with_name("recipe.md")
BEGIN = "<!-- settings: written by docs/write_settings.py -->\n"
END = "<!-- end of settings -->\n"


def settings_section() -> str:
    """One heading and table per stage."""
    lines: list[str] = []
    for name, spec in STAGES.items():
        lines += [f"### `{name}`", "", f"{spec.summary[:1].upper()}{spec.summary[1:]}.", ""]
        lines += ["| setting | default | meaning |", "| --- | --- | --- |"]
        lines += [_row(key, text) for key, text in settings_of(spec.config)]
        lines.append("")
    return "\n".join(lines)


def with_settings(page: str) -> str:
    """The page with the settings between its two marks replaced."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{settings_section()}\n{END}{after}"


def _row(key: str, text: str) -> str:
    ending = re.search(r" ?\[(?:(required)|default: (.*))\]$", text)
    if ending is None:
        return f"| `{key}` | | {text} |"
    default = ending[1] or f"`{ending[2]}`"
    return f"| `{key}` | {default} | {text[: ending.start()]} |"


if __name__ == "__main__":
    PAGE.write_text(with_settings(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
