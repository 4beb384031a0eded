from __future__ import annotations

import pytest
from terminal import printed

from vlm_edge.core.record import RunRecord
from vlm_edge.report.table import measurements_table, run_summary, stages_table


def summary(record: RunRecord, width: int, encoding: str = "utf-8") -> str:
    return printed(lambda console: run_summary(record, console), width, encoding)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_summary_fits_and_no_number_is_broken(record: RunRecord, width: int) -> None:
    text = summary(record, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "[98.44, 98.79]" in text
    assert "[5.30, 5.62]" in text
    assert "0.1234" in text
    assert "n 9673" in text
    assert text.rstrip().endswith("quickstart: MET: compile is within all 3 budgets")


def test_what_has_no_room_is_named(record: RunRecord) -> None:
    assert "not shown at this width: p50, p90, p99, size, peak memory" in summary(record, 80)


def test_a_terminal_without_unicode_can_show_it(record: RunRecord) -> None:
    assert "MISSED" in summary(record, 100, encoding="ascii")


def test_the_verdict_is_a_word_in_every_cell(record: RunRecord) -> None:
    text = summary(record, 120)
    assert text.count("MISSED") == 5
    assert text.count("UNDECIDED") == 1
    assert "(left out)" in text
    assert "(best)" in text


def test_stage_runs_say_what_came_from_the_store(record: RunRecord) -> None:
    rows = [line.split() for line in printed(lambda _: stages_table(record), 100).splitlines()[2:]]
    assert len(rows) == sum(len(variant.runs) for variant in record.variants)
    assert rows[0] == ["baseline", "export", "graphs", "0123456789ab", "yes", "0.2"]
    assert rows[1] == ["baseline", "compile", "(implied)", "engine", "0123456789ab", "no", "12.5"]


def test_measurements_of_one_engine(record: RunRecord) -> None:
    text = printed(lambda _: measurements_table(record.variants[-1].measurements), 80)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:]}
    assert rows["latency_p90_ms"] == ["4.10", "[3.98,", "4.26]", "400", "ms"]
    assert rows["size_bytes"] == ["3.90", "exact", "MB"]
    assert rows["accuracy[color]"] == ["98.62", "[98.32,", "98.92]", "2800", "%"]
