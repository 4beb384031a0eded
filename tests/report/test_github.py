from __future__ import annotations

import pytest
from gates import gate_with, judged

from vlm_edge.core.budget import Verdict
from vlm_edge.core.gate import gate_of
from vlm_edge.core.record import RunRecord
from vlm_edge.report import ci
from vlm_edge.report.ci import annotate, crash_summary, job_summary, workflow_command
from vlm_edge.report.markdown import run_markdown


def unescaped(text: str) -> str:
    """As the runner reads it: actions/runner, ActionCommand.cs."""
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


@pytest.mark.parametrize("text", ["100% of 5, at most: x::y", "two\nlines\r\n", "%0A stays %0A", "a,b:c%", ""])
def test_a_command_is_one_line_that_the_runner_reads_back(text: str) -> None:
    line = workflow_command("error", text, text)
    assert len(line.splitlines()) == 1
    head, _, message = line.removeprefix("::").partition("::")
    level, _, title = head.partition(" title=")
    assert level == "error"
    assert not set(title) & set(":,")
    assert (unescaped(title), unescaped(message)) == (text, text)


def test_every_unmet_budget_is_an_annotation_and_the_missed_come_first() -> None:
    gate = gate_with(
        judged(Verdict.PASS, "size.max_ratio"),
        judged(Verdict.UNDECIDED, "accuracy.max_drop_pt", needed_n=12_345),
        judged(Verdict.NOT_MEASURED, "memory.max_rss_mb", reason="the GPU is elsewhere"),
        judged(Verdict.FAIL, "latency.p90_speedup"),
    )
    lines = annotate(gate)
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::warning"]
    for line, budget in zip(lines, ("latency.p90_speedup", "memory.max_rss_mb", "accuracy.max_drop_pt"), strict=True):
        assert budget in line
    assert "the GPU is elsewhere" in lines[1]
    assert "about 12,345 samples would decide it" in lines[2]


def test_the_summary_has_every_budget_and_the_whole_run(record: RunRecord) -> None:
    gate = gate_of(record)
    text = job_summary(record, gate)
    assert text.startswith(f"## {record.name}: MET: {record.decided_by} is within")
    rows = [line for line in text.split("<details>")[0].splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[1] for row in rows[2:]] == [each.budget for each in gate.judgements]
    assert {row.count(" | ") for row in rows} == {4}
    assert run_markdown(record) in text


def test_a_summary_that_github_would_not_show_is_cut(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ci, "SUMMARY_BYTES", 1000)
    text = job_summary(record, gate_of(record))
    assert run_markdown(record) not in text
    assert "too long for a job summary" in text
    assert all(each.budget in text for each in gate_of(record).judgements)


def test_what_a_user_wrote_can_not_break_the_summary() -> None:
    text = crash_summary("a|b", "<script>\nrows | more")
    assert text.splitlines() == ["## a\\|b: NO VERDICT", "", "&lt;script> rows \\| more"]
