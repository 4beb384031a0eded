"""A gate's judgement in plain lines, for a terminal, a log, a JUnit file and a failed test."""

from __future__ import annotations

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.gate import Gate
from vlm_edge.report.escape import on_terminal
from vlm_edge.report.numbers import VERDICT_WORDS, bound_text, measured_text, reason_text


def gate_headline(gate: Gate) -> str:
    """The verdict in one sentence, with the run that it was held against."""
    against = f" (against {gate.against})" if gate.against else ""
    total = len(gate.judgements)
    if not total:
        return f"{gate.run}: no budget was set, so nothing was judged"
    if gate.verdict is Verdict.PASS:
        within = "its one budget" if total == 1 else f"all {total} budgets"
        return f"{gate.run}: MET: {gate.variant} is within {within}{against}"
    counts = {verdict: sum(each.verdict is verdict for each in gate.judgements) for verdict in VERDICT_WORDS}
    unmet = ", ".join(
        f"{count} {VERDICT_WORDS[verdict].lower()}"
        for verdict, count in counts.items()
        if count and verdict is not Verdict.PASS
    )
    return f"{gate.run}: {VERDICT_WORDS[gate.verdict]}: {gate.variant}: {unmet} of {total} budgets{against}"


def gate_lines(gate: Gate) -> list[str]:
    """A line for each budget (verdict, name, value, interval, n, bound; its reason below), notes, the verdict."""
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
