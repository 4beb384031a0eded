"""What a gate says, in plain lines: for a terminal, a log, a JUnit file and a failed test."""

from __future__ import annotations

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.gate import Gate
from vlm_edge.report.escape import on_terminal
from vlm_edge.report.numbers import VERDICT_WORDS, bound_text, measured_text, reason_text


def gate_headline(gate: Gate) -> str:
    """The verdict in one sentence: ``quickstart: MISSED: compile: 1 missed, 1 undecided of 4 budgets``."""
    against = f" (against {gate.against})" if gate.against else ""
    total = len(gate.judgements)
    if not total:
        return f"{gate.run}: no budget was set, so nothing was judged"
    if gate.verdict is Verdict.PASS:
        within = "its one budget" if total == 1 else f"all {total} budgets"
        return f"{gate.run}: MET: {gate.variant} is within {within}{against}"
    verdicts = [judgement.verdict for judgement in gate.judgements]
    counts = [
        f"{verdicts.count(verdict)} {VERDICT_WORDS[verdict].lower()}"
        for verdict in (Verdict.FAIL, Verdict.NOT_MEASURED, Verdict.UNDECIDED)
        if verdict in verdicts
    ]
    word = VERDICT_WORDS[gate.verdict]
    return f"{gate.run}: {word}: {gate.variant}: {', '.join(counts)} of {total} budgets{against}"


def gate_lines(gate: Gate) -> list[str]:
    """For each budget its verdict, name, value, interval, n and bound, and below them the reason; the verdict last."""
    gate = on_terminal(gate)
    rows = [(VERDICT_WORDS[each.verdict], each.budget, found_text(each), bound_text(each)) for each in gate.judgements]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for row, judgement in zip(rows, gate.judgements, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        lines.append("  ".join([*cells, row[3]]))
        if reason := reason_text(judgement):
            lines.append(f"{' ' * widths[0]}  {reason}")
    return [*lines, *(f"note: {note}" for note in gate.notes), gate_headline(gate)]


def found_text(judgement: Judgement) -> str:
    """``4.12 x [4.05, 4.20], n 400``, to six significant digits; ``not measured`` where there is no number."""
    return measured_text(judgement.measured) if judgement.measured is not None else "not measured"
