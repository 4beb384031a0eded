"""The HTML page: whole, closed to the outside, with every fact of the record, whatever its names are."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from html_page import FOLDER, Page, pages
from report_records import HOSTILE, full_record, not_measured, regressions_of

from vlm_edge.core.budget import Verdict
from vlm_edge.core.record import RunRecord
from vlm_edge.report.html import run_html
from vlm_edge.report.numbers import bound_text, interval_text, value_text


@pytest.fixture
def full(record: RunRecord) -> RunRecord:
    return full_record(record)


def page_of(record: RunRecord, regressions: dict[str, Any] | None = None) -> tuple[str, Page]:
    text = run_html(record, regressions)
    return text, Page(text)


def test_every_tag_is_closed_and_every_picture_is_xml(full: RunRecord) -> None:
    text, page = page_of(full, regressions_of(full))
    assert page.wrong == []
    assert page.open == []
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) > 20
    for picture in pictures:
        ElementTree.fromstring(picture)


def test_nothing_comes_from_elsewhere(full: RunRecord) -> None:
    _, page = page_of(full, regressions_of(full))
    links = [value for name, value in page.attributes if name in ("src", "href", "data", "srcset", "action")]
    assert links
    assert all(link and link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert set(page.tags).isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert not any(name.startswith("on") for name, _ in page.attributes)
    style = run_html(full).partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_every_measurement_is_there(full: RunRecord) -> None:
    _, page = page_of(full)
    for variant in full.variants:
        for found in variant.measurements:
            assert found.metric in page.text
            assert value_text(found) in page.text
            assert interval_text(found) in page.text


def test_a_real_run_is_shown_whole(real: tuple[RunRecord, dict[str, Any]]) -> None:
    text, page = page_of(*real)
    assert (page.wrong, page.open) == ([], [])
    for variant in real[0].variants:
        for found in variant.measurements:
            assert value_text(found) in page.text
            assert interval_text(found) in page.text
    samples = [sample for samples in real[1].values() for sample in samples]
    assert samples
    assert all(sample["text"] in page.text and sample["thumbnail"] in text for sample in samples)
    quantized = [run.facts["components"] for each in real[0].variants for run in each.runs if run.stage == "quantize"]
    assert all(layer["name"] in page.text for fact in quantized[-1].values() for layer in fact["layers"])
    assert all(title in page.text for title in ("Latency by component", "A/A control", "pinned_cpus", "Slices"))


def test_the_verdict_comes_first_with_every_budget(full: RunRecord) -> None:
    _, page = page_of(full)
    assert page.text.index("NOT MEASURED") < page.text.index("The ladder")
    start = page.text[: page.text.index("The ladder")]
    for judgement in full.variants[-1].verdicts:
        assert judgement.budget in start
        assert bound_text(judgement) in start
    assert "the interval holds the bound; about 21,456 samples would decide it" in start
    assert "662 queries are needed for p99" in start


def test_samples_layers_host_and_provenance_are_there(full: RunRecord) -> None:
    text, page = page_of(full, regressions_of(full))
    assert "what color is the <b>shape</b>?" in page.text
    assert all(word in page.text for word in ("teal", "navy", "1 → 0.3", "no image was kept"))
    assert text.count('src="data:image/png') == len(full.variants) - 1
    assert "encoder.layers.14.mlp.fc1" in page.text
    assert all(word in page.text for word in ("20.8", "43.5", "0.999321", "31.75", "asked: int8", "4.00 → 1.10"))
    assert all(
        word in page.text for word in ("blocks.count", "Intel Xeon", "c0ffee5f1e-dirty", "onnxruntime", "1.31.1")
    )
    assert all(digest in page.text for variant in full.variants for digest in variant.artifacts.values())
    assert all(run.key in page.text for variant in full.variants for run in variant.runs)


def test_hostile_names_stay_text(full: RunRecord) -> None:
    text, page = page_of(full, regressions_of(full))
    assert "<script" not in text
    assert HOSTILE in page.text


def test_a_record_with_nothing_measured_says_so(record: RunRecord) -> None:
    reason = "TensorRT is not on this host"
    variants = [not_measured(variant, reason) for variant in record.variants]
    changed = record.model_copy(update={"variants": variants, "verdict": Verdict.NOT_MEASURED, "best": None})
    text, page = page_of(changed)
    assert (page.wrong, page.open) == ([], [])
    assert reason in page.text
    assert "No A/A control was measured" in page.text
    assert "Pareto front" not in text
    assert "pass" not in page.text.split("The ladder")[0]


@pytest.mark.parametrize("name", ["run.page.txt", "quickstart.page.txt"])
def test_the_page_says_the_same_as_before(name: str) -> None:
    """Every table, figure and tooltip; ``python tests/support/html_page.py`` writes a text that is meant to change."""
    assert Page(pages()[name]).lines() == (FOLDER / name).read_text(encoding="utf-8").splitlines()


def test_the_same_record_gives_the_same_bytes(full: RunRecord) -> None:
    assert run_html(full, regressions_of(full)) == run_html(full, regressions_of(full))
