"""README.md and docs/: generated parts are the code's, links and commands lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from doc_pages import PAGES, ROOT, anchor, anchors, fences, links

from vlm_edge.cli.main import COMMANDS, main

every_page = pytest.mark.parametrize("path", PAGES.values(), ids=PAGES.keys())


@pytest.fixture(scope="module")
def write_pages() -> Any:
    """docs/write_pages.py as a module."""
    spec = importlib.util.spec_from_file_location("write_pages", ROOT / "docs" / "write_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@every_page
def test_generated_parts_are_what_the_code_says(path: Path, write_pages: Any) -> None:
    page = path.read_text(encoding="utf-8")
    assert write_pages.written(page) == page, "run `make docs`"


def test_every_generated_part_has_its_place(write_pages: Any) -> None:
    found = [name for path in PAGES.values() for _, name, _ in write_pages.PART.findall(path.read_text("utf-8"))]
    assert sorted(found) == sorted(write_pages.PARTS)


def test_the_page_of_the_command_line_has_every_command_with_its_options() -> None:
    page = PAGES["docs/cli.md"].read_text(encoding="utf-8")
    for name in (name for section in COMMANDS.values() for name in section):
        assert f"\n### {name}\n" in page
    assert "| `-o, --out PATH` | Folder to write; must not exist yet.  [required] |" in page


@every_page
def test_links_lead_somewhere(path: Path) -> None:
    for target, heading in links(path):
        assert target.exists(), f"{path.name} links to {target}"
        if heading and target.suffix == ".md":
            assert heading in anchors(target), f"{path.name} links to {target.name}#{heading}"


@every_page
def test_commands_exist_with_their_options(path: Path) -> None:
    lines = [line for body in fences(path, "console") for line in re.findall(r"^\$ (vlm-edge .*)$", body, re.MULTILINE)]
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        command = next(word for word in words if not word.startswith("-"))
        shown = CliRunner().invoke(main, [command, "--help"])
        assert shown.exit_code == 0, f"{line}: no such command"
        known = shown.output + CliRunner().invoke(main, ["--help"]).output
        for option in (word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", known), f"{line}: {command} has no {option}"


QUESTIONS = {
    "Where is SmoothQuant's alpha?": r"^ALPHA = 0\.5$",
    "How is the interval of the p90 made?": r"`latency_p50_ms`, `p90`, `p99`: .*\n?.*Interval:",
    "Where is the bundle?": r"`runs/NAME/bundle`",
    "Why is a layer float?": r"`float_because`",
    "How do I call it from Python?": r'vlm_edge\.load_pipeline\("runs/quickstart/bundle"\)',
    "How do I run it on a Jetson?": r"vlm-edge compile \S+ --on-device -o device",
    "How is an image preprocessed?": r"^def preprocess\(",
    "Which models can be pruned?": r"^\| BLIP, questions \|",
    "Where is the HTML report?": r"With --html the page is written beside the record, as report\.html",
    "How do I add an engine?": r"^class BackendSpec:",
}
"""A row of docs/index.md, and a pattern of its answer in the place that the row leads to."""


@pytest.mark.parametrize(("question", "answer"), QUESTIONS.items(), ids=QUESTIONS)
def test_a_question_is_answered_two_links_from_the_readme(question: str, answer: str) -> None:
    index = PAGES["docs/index.md"]
    assert index in [target for target, _ in links(PAGES["README.md"])]
    (row,) = (line for line in index.read_text("utf-8").splitlines() if line.startswith(f"| {question} |"))
    name, _, heading = re.findall(r"\]\(([^)]+)\)", row)[0].partition("#")
    text = (index.parent / name).read_text(encoding="utf-8")
    if heading:
        titles = [title for title in re.findall(r"^#+ .+$", text, re.MULTILINE) if anchor(title) == heading]
        text = text[text.index(titles[0]) :]
        text = re.split(r"\n#{1,3} ", text, maxsplit=1)[0] if titles[0].startswith("###") else text
    assert re.search(answer, text, re.MULTILINE)


def test_every_page_is_two_links_from_the_readme() -> None:
    near = {target for target, _ in links(PAGES["README.md"])}
    reached = near | {target for path in PAGES.values() if path in near for target, _ in links(path)}
    assert [name for name, path in PAGES.items() if path not in reached] == []


def test_every_decision_is_in_its_index() -> None:
    page = PAGES["docs/decisions.md"]
    titles = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {anchor(title) for title in titles} == {heading for target, heading in links(page) if target == page}
