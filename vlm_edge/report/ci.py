"""Results for CI systems: JUnit XML, which Jenkins, GitLab, Azure and Buildkite read; a summary for GitHub Actions.

One testsuite a variant, one testcase a budget. A missed budget is a ``failure`` of type ``missed``, an undecided one a
``failure`` of type ``undecided``, one that was not measured an ``error``, so that every verdict but a pass is red.
Variants that don't decide the run can't make it red: budgets they miss are ``skipped``, with the verdict as message.

The file is valid by Jenkins's junit-10.xsd and by the schema of Ant's JUnit task (Windy Road's JUnit.xsd), which asks
for a local time without a zone (UTC here) and for a host name (no host's name is in the record: ``localhost``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.gate import Gate
from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.report import render
from vlm_edge.report.escape import command_data, command_property, markdown, xml_text
from vlm_edge.report.markdown import run_markdown
from vlm_edge.report.numbers import VERDICT_WORDS, gate_lines, judgement_text

_ELEMENTS = {
    Verdict.FAIL: ("failure", "missed"),
    Verdict.UNDECIDED: ("failure", "undecided"),
    Verdict.NOT_MEASURED: ("error", "not_measured"),
}


def run_junit(record: RunRecord, gate: Gate) -> bytes:
    """The XML of a run; ``gate`` is the judgement of its deciding variant."""
    root = ElementTree.Element("testsuites")
    for index, variant in enumerate(record.variants):
        decides = variant.name == gate.variant
        judgements = gate.judgements if decides else variant.verdicts
        classname = xml_text(f"{record.name}.{variant.name}")
        cases = [_case(judgement, classname, decides) for judgement in judgements]
        seconds = sum(run.wall_s for run in variant.runs)
        suite = _suite(index, record.name, variant.name, cases, record.started, seconds)
        suite.insert(0, _properties(_facts(record, variant, gate if decides else None)))
        _text(suite, "system-out", "\n".join(gate_lines(gate)) if decides else "")
        _text(suite, "system-err", "")
        root.append(suite)
    return _document(root)


def crash_junit(name: str, kind: str, message: str, started: str) -> bytes:
    """The XML of a run or gate that gave no verdict: one testcase with an ``error`` of a ``kind`` in one word."""
    case = ElementTree.Element("testcase", name="gives a verdict", classname=xml_text(name), time="0")
    error = ElementTree.SubElement(case, "error", message=xml_text(message), type=xml_text(kind))
    error.text = xml_text(message)
    suite = _suite(0, name, name, [case], started, 0.0)
    suite.insert(0, _properties({}))
    _text(suite, "system-out", "")
    _text(suite, "system-err", message)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    return _document(root)


def _suite(
    index: int, package: str, name: str, cases: Sequence[ElementTree.Element], started: str, seconds: float
) -> ElementTree.Element:
    def count(element: str) -> str:
        return str(sum(case.find(element) is not None for case in cases))

    suite = ElementTree.Element(
        "testsuite",
        id=str(index),
        package=xml_text(package),
        name=xml_text(name),
        timestamp=xml_text(started[:19]),
        hostname="localhost",
        tests=str(len(cases)),
        failures=count("failure"),
        errors=count("error"),
        skipped=count("skipped"),
        time=f"{seconds:.3f}",
    )
    suite.extend(cases)
    return suite


def _case(judgement: Judgement, classname: str, decides: bool) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=xml_text(judgement.budget), classname=classname, time="0")
    if judgement.verdict is Verdict.PASS:
        return case
    line = judgement_text(judgement)
    word = VERDICT_WORDS[judgement.verdict]
    if decides:
        element, kind = _ELEMENTS[judgement.verdict]
        _text(case, element, line, message=f"{word}: {line}", type=kind)
    else:
        _text(case, "skipped", "", message=f"{word}, but another variant decides: {line}")
    return case


def _facts(record: RunRecord, variant: VariantRecord, gate: Gate | None) -> dict[str, Any]:
    """Properties of a suite: verdict, commit, seed, artifacts, host and versions."""
    verdict = gate.verdict if gate else variant.verdict
    facts: dict[str, Any] = {"verdict": verdict.value, "decides": gate is not None, "dropped": variant.dropped}
    if gate is not None and gate.against:
        facts["against"] = gate.against
    facts |= {"commit": record.commit, "seed": record.seed, "started": record.started}
    facts |= {f"artifact.{kind}": digest for kind, digest in variant.artifacts.items()}
    facts |= {f"host.{name}": value for name, value in record.host.items()}
    return facts | {f"version.{name}": value for name, value in record.versions.items()}


def _properties(facts: Mapping[str, Any]) -> ElementTree.Element:
    element = ElementTree.Element("properties")
    for name, value in facts.items():
        if value is not None:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            ElementTree.SubElement(element, "property", name=xml_text(name), value=xml_text(shown))
    return element


def _text(parent: ElementTree.Element, tag: str, text: str, **attributes: str) -> None:
    element = ElementTree.SubElement(parent, tag, {name: xml_text(value) for name, value in attributes.items()})
    element.text = xml_text(text)


def _document(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


SUMMARY_BYTES = 1_000_000
"""A step's summary over 1 MiB is not shown at all."""

_LEVELS = {Verdict.FAIL: "error", Verdict.NOT_MEASURED: "error", Verdict.UNDECIDED: "warning"}


def annotate(gate: Gate) -> list[str]:
    """One workflow command (a line that GitHub's runner reads from a step's output) for each budget that is not met.

    The missed ones come first: GitHub shows ten of a kind.
    """
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
