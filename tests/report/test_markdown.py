from __future__ import annotations

import re

from vlm_edge.core.record import RunRecord
from vlm_edge.report.markdown import run_markdown


def rows_of(text: str, header: str) -> list[list[str]]:
    """Cells of the table whose header line starts so, without header and rule."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(header))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return table


def test_a_line_for_every_variant_with_intervals_and_verdicts(record: RunRecord) -> None:
    rows = rows_of(run_markdown(record), "| variant | accuracy")
    assert [row[0] for row in rows] == ["baseline", "quantize", "prune (left out)", "distill", "compile (best)"]
    assert rows[-1][2] == "0.53 [0.33, 0.73] pass"
    assert rows[1][6] == "2.22 [2.15, 2.29] MISSED"
    assert len({len(row) for row in rows}) == 1


def test_the_title_is_the_verdict(record: RunRecord) -> None:
    assert run_markdown(record).startswith("# quickstart: MET: compile is within all 3 budgets\n")


def test_parts_of_the_deciding_variant_and_the_host_are_listed(record: RunRecord) -> None:
    text = run_markdown(record)
    assert ["accuracy[color]", "98.62 % [98.32, 98.92], n 2800"] in rows_of(text, "| metric | value")
    assert "- cpu: Intel Xeon\n" in text
    assert "- onnxruntime: 1.31.1\n" in text


def test_what_a_user_wrote_can_not_break_the_table(record: RunRecord) -> None:
    variant = record.variants[0].model_copy(update={"name": "a|b\n<script>"})
    text = run_markdown(record.model_copy(update={"variants": [variant, *record.variants[1:]]}))
    assert rows_of(text, "| variant | accuracy")[0][0] == "a\\|b &lt;script>"
