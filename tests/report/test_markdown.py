from __future__ import annotations

import re
from typing import Any

from report_records import full_record, regressions_of

from vlm_edge.core.record import RunRecord
from vlm_edge.report.markdown import run_markdown
from vlm_edge.report.numbers import interval_text, is_exact, value_text
from vlm_edge.report.views import at_one_load


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
    assert ["accuracy[color]", "98.62", "[98.32, 98.92]", "2800", "%"] in rows_of(
        text[text.index("## compile in parts") :], "| metric | value"
    )
    assert "- cpu: Intel Xeon\n" in text
    assert "- onnxruntime: 1.31.1\n" in text


def test_what_a_user_wrote_can_not_break_the_table(record: RunRecord) -> None:
    variant = record.variants[0].model_copy(update={"name": "a|b\n<script>"})
    text = run_markdown(record.model_copy(update={"variants": [variant, *record.variants[1:]]}))
    assert rows_of(text, "| variant | accuracy")[0][0] == "a\\|b &lt;script>"


def test_markdown_has_what_the_page_has(record: RunRecord) -> None:
    full = full_record(record)
    text = run_markdown(full, regressions_of(full))
    for metrics in at_one_load(full).values():
        for found in metrics.values():
            assert value_text(found) in text
            assert interval_text(found) in text or is_exact(found)
    budgets = rows_of(text, "| budget | bound")
    assert [row[0] for row in budgets] == [judgement.budget for judgement in full.variants[-1].verdicts]
    assert budgets[-2][4] == "the interval holds the bound; about 21,456 samples would decide it"
    assert len(rows_of(text, "| component | layer")) == 15
    assert rows_of(text, "| sample | image")[0][:3] == ["test/7#3", "7.png", "what color is the &lt;b>shape&lt;/b>?"]
    assert rows_of(text, "| variant | vision_encoder")[0][1] == "1.50 ms [1.49, 1.51], n 400"
    assert "- p90 A/A control: 1.0100 x [0.9900, 1.0300], n 400" in text
    assert "- commit: c0ffee5f1e-dirty" in text
    assert "](http" not in text
    assert "<script" not in text


def test_a_real_run_is_told_whole(real: tuple[RunRecord, dict[str, Any]]) -> None:
    text = run_markdown(*real)
    for metrics in at_one_load(real[0]).values():
        assert all(value_text(found) in text for found in metrics.values())
    assert len({len(row) for row in rows_of(text, "| variant | accuracy")}) == 1
    assert rows_of(text, "| component | layer")
