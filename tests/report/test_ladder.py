from __future__ import annotations

from report_records import not_measured

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.record import RunRecord
from vlm_edge.report.ladder import deciding_variant, headline, ladder_of, remarks, unmet


def decided_by(record: RunRecord, name: str, **changes: object) -> RunRecord:
    variant = next(variant for variant in record.variants if variant.name == name)
    return record.model_copy(update={"decided_by": name, "verdict": variant.verdict, **changes})


def test_a_row_for_every_variant_and_a_cell_for_every_metric(record: RunRecord) -> None:
    ladder = ladder_of(record)
    assert [row.name for row in ladder.rows] == ["baseline", "quantize", "prune", "distill", "compile"]
    assert all(len(row.cells) == len(ladder.columns) for row in ladder.rows)
    measured = {found.metric for variant in record.variants for found in variant.measurements}
    assert {column.metric for column in ladder.columns} == measured - {"accuracy[color]"}


def test_the_metrics_that_budgets_bound_come_first_when_room_is_short(record: RunRecord) -> None:
    columns = ladder_of(record, most_columns=4).columns
    assert [column.metric for column in columns] == [
        "accuracy",
        "accuracy_drop_pt",
        "latency_p90_speedup",
        "size_ratio",
    ]


def test_a_column_shows_the_n_and_the_bound_that_all_rows_share(record: RunRecord) -> None:
    columns = {column.metric: column for column in ladder_of(record).columns}
    assert (columns["accuracy_drop_pt"].n, columns["accuracy_drop_pt"].bound) == ("n 9673", "<= 1 pt")
    assert (columns["size_ratio"].n, columns["size_ratio"].bound) == ("exact", "<= 0.125 x")
    assert columns["latency_p90_ms"].bound is None


def test_a_cell_shows_the_worse_of_two_bounds_on_its_metric(record: RunRecord) -> None:
    """A recipe's ``memory.max_rss_mb`` and the target's ``memory_mb`` bound the same number."""
    for verdicts in (("pass", "fail"), ("fail", "pass")):
        rows = zip(("memory.max_rss_mb", "target.memory_mb"), verdicts, ("<= 200", "<= 20"), strict=True)
        judged = [
            Judgement(budget=budget, metric="peak_rss_mb", bound=bound, verdict=Verdict(verdict))
            for budget, verdict, bound in rows
        ]
        last = record.variants[-1].model_copy(update={"verdicts": judged})
        ladder = ladder_of(record.model_copy(update={"variants": [*record.variants[:-1], last]}))
        index = next(i for i, column in enumerate(ladder.columns) if column.metric == "peak_rss_mb")
        cell = ladder.rows[-1].cells[index]
        failed = judged[verdicts.index("fail")]
        assert cell.judged == f"MISSED ({failed.bound} MiB)"


def test_a_cell_shows_its_own_n_and_bound_where_rows_differ(record: RunRecord) -> None:
    last = record.variants[-1]
    measurements = [found.model_copy(update={"n": 7}) for found in last.measurements]
    verdicts = [last.verdicts[0].model_copy(update={"bound": "<= 0.5"}), *last.verdicts[1:]]
    changed = last.model_copy(update={"measurements": measurements, "verdicts": verdicts})
    ladder = ladder_of(record.model_copy(update={"variants": [*record.variants[:-1], changed]}))
    index = next(i for i, column in enumerate(ladder.columns) if column.metric == "accuracy_drop_pt")
    assert ladder.columns[index].n is None
    assert ladder.columns[index].bound is None
    assert ladder.rows[-1].cells[index].n == "n 7"
    assert ladder.rows[-1].cells[index].judged == "pass (<= 0.5 pt)"
    assert ladder.rows[1].cells[index].n == "n 9673"


def test_the_headline_names_the_variant_and_counts_what_is_not_met(record: RunRecord) -> None:
    assert headline(record) == "quickstart: MET: compile is within all 3 budgets"
    assert headline(decided_by(record, "quantize")) == "quickstart: MISSED: quantize: 2 missed of 3 budgets"
    assert headline(decided_by(record, "distill")) == "quickstart: UNDECIDED: distill: 1 undecided of 3 budgets"


def test_no_budget_is_not_called_met(record: RunRecord) -> None:
    assert headline(decided_by(record, "baseline")) == "quickstart: no budget was set, so nothing was judged"


def test_not_measured_is_never_shown_as_passed(record: RunRecord) -> None:
    last = not_measured(record.variants[-1], "TensorRT is not on this host")
    changes = {"variants": [*record.variants[:-1], last], "verdict": last.verdict, "best": None}
    changed = record.model_copy(update=changes)
    row = ladder_of(changed).rows[-1]
    assert {cell.judged for cell in row.cells} == {"", "NOT MEASURED"}
    assert "pass" not in "".join(cell.judged for cell in row.cells)
    assert headline(changed) == "quickstart: NOT MEASURED: compile: 3 not measured of 3 budgets"
    assert remarks(changed)[-1] == "compile: NOT MEASURED: TensorRT is not on this host"
    assert len(unmet(last)) == 3


def test_the_unmet_budgets_are_named_with_value_interval_and_bound(record: RunRecord) -> None:
    lines = unmet(record.variants[1])
    assert lines[0].startswith("missed: quantize: latency.p90_speedup: 2.22 x [2.1534, 2.2866], n 400; the bound is >=")
    assert lines[1] == "missed: quantize: size.max_ratio: 0.2595 x exact; the bound is <= 0.125 x"


def test_what_was_left_out_of_inputs_is_said(record: RunRecord) -> None:
    changed = record.variants[0].model_copy(update={"notes": ["2 of 9 captions were cut"]})
    assert remarks(record.model_copy(update={"variants": [changed]}))[0] == "baseline: 2 of 9 captions were cut"


def test_skipped_samples_are_counted_and_the_first_are_named(record: RunRecord) -> None:
    skipped = [{"id": str(i), "image": f"{i}.png", "reason": "truncated"} for i in range(5)]
    changed = record.variants[0].model_copy(update={"skipped": skipped})
    line = remarks(record.model_copy(update={"variants": [changed]}))[0]
    assert line.startswith("baseline: 5 samples skipped: 0: 0.png: truncated; 1: ")
    assert line.endswith("(and 2 more, see run.json)")


def test_the_deciding_variant_is_found_by_name(record: RunRecord) -> None:
    assert deciding_variant(record) is record.variants[-1]
    assert deciding_variant(record.model_copy(update={"decided_by": "gone"})) is None


def test_the_baseline_is_not_judged_on_being_better_than_itself(record: RunRecord) -> None:
    judged = record.variants[1].verdicts
    baseline = record.variants[0].model_copy(update={"verdicts": judged, "verdict": record.variants[1].verdict})
    changed = record.model_copy(update={"variants": [baseline, *record.variants[1:]]})
    assert {cell.judged for cell in ladder_of(changed).rows[0].cells} == {""}
    alone = changed.model_copy(update={"variants": [baseline], "decided_by": "baseline"})
    assert "MISSED" in {cell.judged for cell in ladder_of(alone).rows[0].cells}


def test_layers_that_compile_runs_uncalibrated_are_named(record: RunRecord) -> None:
    before = remarks(record)
    last = record.variants[-1]
    tuned = {"layers": {"dynamic": 41}, "uncalibrated_layers": 41, "uncalibrated": "by DynamicQuantizeMatMul"}
    decoder = {"size_bytes": 9, "integer": True, "output": "logits", "cosine": 1.0, "tuned": tuned}
    facts = {"engine": "onnxruntime", "optimize": "full", "components": {"decoder": decoder}}
    run = last.runs[-1].model_copy(update={"stage": "compile", "facts": facts})
    changed = last.model_copy(update={"runs": [*last.runs[:-1], run]})
    lines = remarks(record.model_copy(update={"variants": [*record.variants[:-1], changed]}))
    assert [line for line in lines if line not in before] == ["compile: 41 layers of decoder: by DynamicQuantizeMatMul"]
