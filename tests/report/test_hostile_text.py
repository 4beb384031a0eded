"""Texts of records, recipes and messages steer no output."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from gates import judged
from html_page import Page
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_records import full_record, regressions_of
from rich.console import Console
from terminal import printed

from vlm_edge.cli.main import main
from vlm_edge.cli.progress import PlainProgress
from vlm_edge.core.budget import Verdict
from vlm_edge.core.gate import Gate, gate_of
from vlm_edge.core.record import RunRecord, read_record
from vlm_edge.report.ci import annotate, crash_junit, crash_summary, job_summary, run_junit
from vlm_edge.report.compare import compare_table, compared
from vlm_edge.report.escape import json_text, markdown, markup, terminal, visible
from vlm_edge.report.html import compare_html, run_html
from vlm_edge.report.ladder import row_text
from vlm_edge.report.markdown import compare_markdown, run_markdown
from vlm_edge.report.numbers import gate_lines
from vlm_edge.report.table import run_summary, stages_table

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]"
)
PHRASES = (
    "::add-mask::x",
    "\n::error::x", "\r# forged", "\n# forged", "\n\n---\n", "##[add-mask]x", "\x1b[31m", "\x1b]0;t\x07",
    "\x9b31m", "\u202e", "\u2066", "\u2028::warning::x", "\x85",
    "\x00", "\ud800", "\ufffe", "![x](http://e.example/p.png)",
    "[x](javascript:alert)", "[x][y]", "<script>alert(1)</script>",
    "<img src=x onerror=y>", '" onload="x', "</summary>",
    "]]>", "<!--", "&#x202e;", "&lt;b&gt;", "|", "\\|", "\\", "`", "```", "~~~", "https://e.example", "www.e.example",
    "a@e.example", "> x", "* x", "1. x", "[red]", "[/]", ":", "%0A::x::", "\t", " ",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PHRASES) | st.text(max_size=5) | st.characters(codec=None), min_size=1, max_size=4)
FEW = settings(max_examples=5, phases=(Phase.explicit, Phase.reuse, Phase.generate), deadline=None)
"""A page takes a tenth of a second to write and to read again; every phrase is in the first try."""
HOSTILE = st.just("".join(PHRASES)) | st.builds("".join, TEXTS)
WAYS: dict[str, Callable[[str, str], str]] = {
    "before": lambda text, odd: odd + text,
    "after": lambda text, odd: text + odd,
    "part": lambda text, odd: f"{text}[{odd}]",
}


def changed(value: Any, odd: str, way: Callable[[str, str], str]) -> Any:
    """The same model with something odd in every text, but for enums and a bound's number."""
    if type(value) is str:
        return way(value, odd)
    if isinstance(value, list):
        return [changed(each, odd, way) for each in value]
    if isinstance(value, dict):
        return {changed(key, odd, way): changed(each, odd, way) for key, each in value.items()}
    if hasattr(value, "model_fields_set"):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        known = ("bound", "unit") if "bound" in fields else ("components",)
        return type(value).model_construct(
            **{name: each if name in known else changed(each, odd, way) for name, each in fields.items()}
        )
    return value


def facts_kept(record: RunRecord, hostile: RunRecord, odd: str, way: Callable[[str, str], str]) -> RunRecord:
    """With the names of stages and the keys of their facts as the report looks for them, so that values are shown."""

    def values(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: values(each) for key, each in value.items()}
        return [values(each) for each in value] if isinstance(value, list) else changed(value, odd, way)

    for variant, own in zip(hostile.variants, record.variants, strict=True):
        runs = [
            run.model_copy(update={"facts": values(old.facts), **({"stage": old.stage} if old.facts else {})})
            for run, old in zip(variant.runs, own.runs, strict=True)
        ]
        variant.runs[:] = runs
    return hostile


RECORD = full_record(read_record(Path(__file__).with_name("run.json")))
GATE = gate_of(RECORD).model_copy(update={"notes": ["a note"], "against": "another run"})
GATE = GATE.model_copy(
    update={"judgements": [*GATE.judgements, judged(Verdict.FAIL), judged(Verdict.NOT_MEASURED, reason="no GPU")]}
)


@pytest.fixture(params=WAYS, scope="module")
def made(request: pytest.FixtureRequest) -> Callable[[str], tuple[RunRecord, Gate, dict[str, Any]]]:
    def make(odd: str) -> tuple[RunRecord, Gate, dict[str, Any]]:
        way = WAYS[request.param]
        record = facts_kept(RECORD, changed(RECORD, odd, way), odd, way)
        samples = regressions_of(RECORD)
        regressions = {
            way(name, odd): [{key: changed(each, odd, way) for key, each in row.items()} for row in rows]
            for name, rows in samples.items()
        }
        return record, changed(GATE, odd, way), regressions

    return make


def no_command(lines: Iterator[str] | list[str]) -> None:
    for line in lines:
        assert not line.lstrip().startswith("::"), line
        assert "##[" not in line


TOKENS = MarkdownIt("commonmark").enable("table")


def checked_markdown(text: str, like: str) -> None:
    """No link, picture, HTML, code or rule of others; no heading and no row that a line of the report did not begin."""
    assert not UNSEEN.search(text)
    flat = [
        [token.type for each in TOKENS.parse(source) for token in (each, *(each.children or ()))]
        for source in (text, like)
    ]
    for kind in ("fence", "code_block", "code_inline", "html_block", "html_inline", "hr", "link_open", "image"):
        assert flat[0].count(kind) == flat[1].count(kind), kind
    outside = re.sub(r"(?s)\n```yaml\n.*?\n```\n", "\n", text)
    lines = outside.split("\n")
    assert flat[0].count("heading_open") == sum(bool(re.match("#{1,6} ", line)) for line in lines)
    assert flat[0].count("tr_open") == sum(line.startswith("| ") and not line.startswith("| --- ") for line in lines)
    for line, below in pairwise(lines):
        if line.startswith("| ") and below.startswith("| "):
            assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", each)) for each in (line, below)}) == 1
    assert "://" not in outside
    assert not re.search(r"(?i)\bwww\.", outside)


@FEW
@given(odd=HOSTILE)
def test_html_has_no_element_attribute_or_character_of_others(made: Any, odd: str) -> None:
    record, _, regressions = made(odd)
    for text, like in (
        (run_html(record, regressions), run_html(RECORD, regressions_of(RECORD))),
        (compare_html(side_by_side(record)), compare_html(side_by_side(RECORD))),
    ):
        page, usual = Page(text), Page(like)
        assert set(page.tags) <= set(usual.tags) | {"i"}
        assert {name for name, _ in page.attributes} <= {name for name, _ in usual.attributes}
        assert not UNSEEN.search(text)
        assert not UNSEEN.search(page.text.replace("\r", ""))
        assert all(not UNSEEN.search(value) for _, value in page.attributes)


def side_by_side(record: RunRecord) -> Any:
    other = record.model_copy(update={"commit": "another", "versions": {}, "recipe": {}})
    return compared([("a", record, record.variants[-1]), ("b", other, record.variants[0])], [{}])


@FEW
@given(odd=HOSTILE)
def test_markdown_and_the_job_summary(made: Any, odd: str) -> None:
    record, gate, regressions = made(odd)
    usual, usual_gate, usual_regressions = made("odd")
    checked_markdown(run_markdown(record, regressions), run_markdown(usual, usual_regressions))
    checked_markdown(job_summary(record, gate), job_summary(usual, usual_gate))
    checked_markdown(compare_markdown(side_by_side(record)), compare_markdown(side_by_side(usual)))
    checked_markdown(crash_summary(odd, odd), crash_summary("name", "message"))


@FEW
@given(odd=HOSTILE)
def test_junit_can_be_read(made: Any, odd: str) -> None:
    record, gate, _ = made(odd)
    for content in (run_junit(record, gate), crash_junit(odd, odd, odd, odd)):
        root = ElementTree.fromstring(content)
        for element in root.iter():
            for text in (element.text or "", element.tail or "", *element.attrib.values()):
                assert not UNSEEN.search(text)


@FEW
@given(odd=HOSTILE, width=st.sampled_from([40, 80, 200]))
def test_terminals_and_logs_get_no_command_and_no_control_character(made: Any, odd: str, width: int) -> None:
    record, gate, _ = made(odd)
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    progress = PlainProgress(console)
    progress.remark(odd)
    texts = [
        printed(lambda console: run_summary(record, console), width),
        printed(lambda _: stages_table(record), width),
        printed(lambda _: compare_table(side_by_side(record)), width),
        "\n".join(gate_lines(gate)),
        row_text(record),
        console.file.getvalue(),  # type: ignore[attr-defined]
    ]
    for text in texts:
        assert not UNSEEN.search(text)
        no_command(text.split("\n"))
    assert len(gate_lines(gate)) == len(gate_lines(GATE))
    assert "\n" not in row_text(record)


@FEW
@given(odd=HOSTILE)
def test_annotations_are_one_line_each(made: Any, odd: str) -> None:
    _, gate, _ = made(odd)
    lines = annotate(gate)
    assert len(lines) == len(annotate(GATE))
    for line in lines:
        assert not UNSEEN.search(line)
        assert "\n" not in line
        assert re.match(r"::(error|warning) title=[^:,]*::", line)


@FEW
@given(odd=HOSTILE)
def test_json_says_the_same_without_what_acts(odd: str) -> None:
    value = {"a": odd, odd: [odd]}
    text = json_text(value)
    assert json.loads(text) == value
    assert not UNSEEN.search(text)
    no_command(text.split("\n"))


def test_texts_that_mean_no_harm_are_left_as_they_are() -> None:
    for text in (
        "größer 大 🙂 👩‍👩‍👧",
        "accuracy[color] >= 5 x",
        'a: b, c; d\'s "e" (f) {g} 100%',
        "path/to-file_1.json",
    ):
        assert visible(text) == terminal(text) == markdown(text) == text
        assert markup(text).replace("&#x27;", "'").replace("&quot;", '"').replace("&gt;", ">") == text


def test_a_recipe_s_key_is_no_command_in_check(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"name": "x", "\n::add-mask::x": 1, "\x1b[31mred": {"\r::error::": 1}}))
    result = CliRunner().invoke(main, ["check", str(recipe)])
    assert result.exit_code == 2
    assert not UNSEEN.search(result.output)
    no_command(result.output.splitlines())


def test_a_record_s_texts_are_no_commands_in_any_command(tmp_path: Path) -> None:
    odd = "\n::add-mask::x\x1b[31m\r\u202e##[error]"
    record = json.loads(Path(__file__).with_name("run.json").read_text())
    record["name"] = odd
    record["host"] = {odd: odd}
    for variant in record["variants"]:
        variant["name"], variant["skipped"] = f"{odd}{variant['name']}", [{"id": odd, "image": odd, "reason": odd}]
        for verdict in variant["verdicts"]:
            verdict["budget"], verdict["reason"] = odd, odd
    record["decided_by"], record["best"] = f"{odd}{record['decided_by']}", None
    (tmp_path / "runs" / "odd").mkdir(parents=True)
    (tmp_path / "runs" / "odd" / "run.json").write_text(json.dumps(record))
    for arguments in (
        ("report", "odd"),
        ("report", "odd", "--json"),
        ("report", "odd", "--format", "markdown"),
        ("report", "odd", "--format", "html"),
        ("compare", "odd", "odd"),
        ("compare", "odd", "odd", "--json"),
        ("gate", "odd"),
        ("gate", "odd", "--variant", "none"),
        ("gate", "odd", "--json"),
        ("ls",),
        ("ls", "--json"),
    ):
        result = CliRunner().invoke(main, ["--runs", str(tmp_path / "runs"), *arguments])
        assert "fault in vlm-edge" not in result.stderr
        assert not UNSEEN.search(result.output), arguments
        if "html" not in arguments and "markdown" not in arguments:
            no_command(result.output.splitlines())
