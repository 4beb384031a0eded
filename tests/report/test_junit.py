"""JUnit XML: red for whatever is no pass, and of the form that Jenkins and Ant ask for."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from gates import gate_with, judged

from vlm_edge.core.budget import Verdict
from vlm_edge.core.gate import gate_of
from vlm_edge.core.record import RunRecord
from vlm_edge.report.ci import crash_junit, run_junit

# What both Jenkins's junit-10.xsd and Windy Road's JUnit.xsd (Ant) allow: attributes that must be there (of those, the
# ones with a pattern), further attributes, and children in order.
TOKEN, NUMBER, SECONDS = r"\S(.*\S)?", r"\d+", r"\d+(\.\d+)?"
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
SHAPE: dict[str, tuple[dict[str, str], set[str], str]] = {
    "testsuites": ({}, set(), r"(testsuite )*"),
    "testsuite": (
        {"name": TOKEN, "tests": NUMBER, "failures": NUMBER, "errors": NUMBER, "time": SECONDS, "hostname": TOKEN,
         "timestamp": STAMP, "package": TOKEN, "id": NUMBER},
        {"skipped"},
        r"properties (testcase )*system-out system-err ",
    ),
    "properties": ({}, set(), r"(property )*"),
    "property": ({"name": TOKEN, "value": r"(?s).*"}, set(), ""),
    "testcase": ({"name": TOKEN, "classname": TOKEN, "time": SECONDS}, set(), r"((failure|error|skipped) )?"),
    "failure": ({"type": TOKEN, "message": r"(?s).+"}, set(), ""),
    "error": ({"type": TOKEN, "message": r"(?s).+"}, set(), ""),
    "skipped": ({"message": r"(?s).+"}, {"type"}, ""),
    "system-out": ({}, set(), ""),
    "system-err": ({}, set(), ""),
}  # fmt: skip


def check(element: ElementTree.Element) -> None:
    needed, optional, children = SHAPE[element.tag]
    assert set(needed) <= set(element.attrib) <= set(needed) | optional
    for name, pattern in needed.items():
        assert re.fullmatch(pattern, element.attrib[name]), f"{element.tag} {name}={element.attrib[name]!r}"
    assert re.fullmatch(children, "".join(f"{child.tag} " for child in element))
    for child in element:
        check(child)


def parsed(content: bytes) -> ElementTree.Element:
    root = ElementTree.fromstring(content)
    check(root)
    for suite in root:
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.get(attribute, "")) == len(suite.findall(f"testcase/{tag}"))
        assert int(suite.get("tests", "")) == len(suite.findall("testcase"))
    return root


@pytest.mark.parametrize(
    ("verdict", "element", "kind"),
    [
        (Verdict.FAIL, "failure", "missed"),
        (Verdict.UNDECIDED, "failure", "undecided"),
        (Verdict.NOT_MEASURED, "error", "not_measured"),
    ],
)
def test_what_is_no_pass_is_red(record: RunRecord, verdict: Verdict, element: str, kind: str) -> None:
    reason = None if verdict is Verdict.FAIL else "because"
    root = parsed(
        run_junit(record, gate_with(judged(verdict, reason=reason), run=record.name, variant=record.decided_by))
    )
    (suite,) = root.findall(f"testsuite[@name='{record.decided_by}']")
    (case,) = suite.findall("testcase")
    (red,) = case
    assert (red.tag, red.get("type")) == (element, kind)
    message = red.get("message", "")
    assert all(part in message for part in ("latency.p90_speedup", ">= 5 x", reason or ""))


def test_a_run_that_met_its_budgets_is_green_whatever_other_variants_missed(record: RunRecord) -> None:
    assert record.verdict is Verdict.PASS
    assert any(each.verdict is not Verdict.PASS for variant in record.variants for each in variant.verdicts)
    root = parsed(run_junit(record, gate_of(record)))
    assert root.findall(".//failure") + root.findall(".//error") == []
    missed = sum(each.verdict is not Verdict.PASS for variant in record.variants for each in variant.verdicts)
    skipped = root.findall(".//skipped")
    assert len(skipped) == missed
    assert all("another variant decides" in each.get("message", "") for each in skipped)


def test_a_suite_for_every_variant_with_its_time_and_where_it_was_measured(record: RunRecord) -> None:
    root = parsed(run_junit(record, gate_of(record)))
    assert [suite.get("name") for suite in root] == [variant.name for variant in record.variants]
    for suite, variant in zip(root, record.variants, strict=True):
        assert float(suite.get("time", "")) == pytest.approx(sum(run.wall_s for run in variant.runs), abs=1e-3)
        facts = {each.get("name"): each.get("value") for each in suite.iter("property")}
        assert facts["seed"] == str(record.seed)
        assert facts["host.cpu"] == record.host["cpu"]
        assert facts["artifact.engine"] == variant.artifacts["engine"]
        assert {name for name in facts if name and name.startswith("version.")}
    (out,) = [suite.findtext("system-out") for suite in root if suite.get("name") == record.decided_by]
    assert f"{record.name}: MET" in (out or "")


def test_names_and_messages_that_xml_can_not_hold(record: RunRecord) -> None:
    odd = judged(Verdict.NOT_MEASURED, "a<b>&\"'", reason="the worker said \x1b[31m\x00 ]]> \ud800\n<done>")
    root = parsed(run_junit(record, gate_with(odd, run=record.name, variant=record.decided_by)))
    (error,) = root.findall(".//error")
    assert "\\x1b[31m\\x00 ]]> \\ud800\n<done>" in (error.text or "")
    assert "\x1b" not in (error.text or "")
    assert [case.get("name") for case in root.iter("testcase") if case.find("error") is not None] == ["a<b>&\"'"]


def test_a_crash_is_one_error_with_its_message() -> None:
    root = parsed(crash_junit("toy", "OSError", "the worker died\nat once", "2026-11-21T03:00:00+00:00"))
    (error,) = root.findall("testsuite/testcase/error")
    assert (error.get("type"), error.get("message"), error.text) == (
        "OSError", "the worker died\nat once", "the worker died\nat once"
    )  # fmt: skip
    assert root[0].get("timestamp") == "2026-11-21T03:00:00"
