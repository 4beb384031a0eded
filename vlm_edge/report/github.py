"""GitHub Actions: a job summary in Markdown, and annotations on the run's page.

Annotations are workflow commands, lines that the runner reads from a step's output.
"""

from __future__ import annotations

from vlm_edge.core.budget import Verdict
from vlm_edge.core.gate import Gate
from vlm_edge.core.record import RunRecord
from vlm_edge.report import render
from vlm_edge.report.escape import command_data, command_property, markdown
from vlm_edge.report.markdown import run_markdown
from vlm_edge.report.numbers import VERDICT_WORDS, judgement_text

SUMMARY_BYTES = 1_000_000
"""A step's summary over 1 MiB is not shown at all."""

_LEVELS = {Verdict.FAIL: "error", Verdict.NOT_MEASURED: "error", Verdict.UNDECIDED: "warning"}


def annotate(gate: Gate) -> list[str]:
    """One workflow command for each budget that is not met, the missed ones first: GitHub shows ten of a kind."""
    order = list(VERDICT_WORDS)
    unmet = sorted((each for each in gate.judgements if each.verdict in _LEVELS), key=lambda e: order.index(e.verdict))
    return [
        workflow_command(
            _LEVELS[each.verdict],
            f"{gate.run}: {VERDICT_WORDS[each.verdict]}: {each.budget}",
            f"{gate.variant}: {judgement_text(each)}",
        )
        for each in unmet
    ]


def workflow_command(level: str, title: str, message: str) -> str:
    """``::error title=TITLE::MESSAGE``, escaped."""
    return f"::{level} title={command_property(title)}::{command_data(message)}"


def job_summary(record: RunRecord, gate: Gate) -> str:
    """The verdict, every budget, and the whole run in a fold."""
    head = render.markdown("summary.md", gate=gate)
    whole = f"\n<details><summary>The whole run</summary>\n\n{run_markdown(record)}\n</details>\n"
    if len((head + whole).encode()) > SUMMARY_BYTES:
        whole = "\nThe whole run is too long for a job summary: see run.json among the job's artifacts.\n"
    return head + whole


def crash_summary(name: str, message: str) -> str:
    """The job summary of a run or gate that gave no verdict."""
    return f"## {markdown(name)}: NO VERDICT\n\n{markdown(message)}\n"
