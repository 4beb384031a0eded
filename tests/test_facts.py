"""The facts that stages write are those that the models of facts describe, and a record is held to them."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from vlm_edge.core.record import RunRecord, read_record
from vlm_edge.errors import VlmEdgeError
from vlm_edge.facts import FACTS, CompileFacts, QuantizeFacts
from vlm_edge.stages import STAGES

WHOLE = json.loads((Path(__file__).parent / "report" / "quickstart.json").read_bytes())["record"]
RUNS = [run for variant in WHOLE["variants"] for run in variant["runs"]]


def test_every_stage_names_the_model_that_readers_know_its_facts_by() -> None:
    assert {name: spec.facts for name, spec in STAGES.items()} == FACTS


@pytest.mark.parametrize("stage", FACTS)
def test_the_facts_of_a_real_run_are_all_known(stage: str) -> None:
    facts = [run["facts"] for run in RUNS if run["stage"] == stage]
    assert facts
    for each in facts:
        assert FACTS[stage].model_validate(each).model_dump(by_alias=True, exclude_unset=True) == each


def test_a_run_s_facts_are_read_as_what_its_stage_wrote() -> None:
    record = RunRecord.model_validate(WHOLE)
    quantize, compiled = record.variants[1].runs[1:]
    assert (quantize.stage, compiled.stage) == ("quantize", "compile")
    facts = quantize.facts_as(QuantizeFacts)
    assert facts is not None
    assert facts.components["vision_encoder"].outputs["image_features"].cosine > 0.99
    assert quantize.facts_as(CompileFacts) is None
    assert compiled.facts_as(CompileFacts) is not None
    assert compiled.model_copy(update={"facts": {}}).facts_as(CompileFacts) is None


def with_facts(folder: Path, stage: str, facts: Any) -> Path:
    """A run's folder whose last variant has one stage run with these facts."""
    record = json.loads((write_run(folder / "run") / "run.json").read_text())
    (run,) = [run for run in RUNS if run["stage"] == stage][:1]
    record["variants"][1]["runs"] = [{**run, "facts": facts}]
    (folder / "run" / "run.json").write_text(json.dumps(record))
    return folder / "run"


@pytest.mark.parametrize(
    ("stage", "place", "value", "fault"),
    [
        (
            "quantize",
            ("components", "decoder", "layers", 3, "output_sqnr_db"),
            "loud",
            "components.decoder.layers[3].out",
        ),
        ("quantize", ("components", "decoder", "outputs"), [1], "components.decoder.outputs: give a mapping (got [1])"),
        ("quantize", ("components",), None, "components: give a mapping (got null)"),
        ("compile", ("components", "decoder", "tuned"), "fast", "components.decoder.tuned: give a mapping"),
        ("compile", ("engine",), 5, "engine: input should be a valid string (got 5)"),
        ("distill", ("training", "steps"), 0.5, "training.steps: input should be a valid integer"),
    ],
)
def test_facts_of_another_form_are_refused_with_the_file_and_the_key(
    tmp_path: Path, stage: str, place: tuple[str | int, ...], value: Any, fault: str
) -> None:
    facts: Any = copy.deepcopy(next(run["facts"] for run in RUNS if run["stage"] == stage))
    inner = facts
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(VlmEdgeError) as error:
        read_record(with_facts(tmp_path, stage, facts))
    assert f"run.json: variants[1].runs[0].facts: {fault}" in error.value.message
    assert error.value.hint == "run the recipe again with this version"


def test_facts_of_a_stage_of_one_s_own_are_any_object(tmp_path: Path) -> None:
    folder = with_facts(tmp_path, "compile", {"components": 5})
    text = (folder / "run.json").read_text().replace('"stage": "compile", "config"', '"stage": "weave", "config"')
    (folder / "run.json").write_text(text)
    assert read_record(folder).variants[1].runs[0].facts == {"components": 5}


def test_mutated_facts_are_read_or_refused(tmp_path: Path) -> None:
    """A random value at a random place: a record that a report can show, or one error in words."""
    from vlm_edge.report.html import run_html

    values: list[Any] = [None, True, -1, 1e308, "", "x", [], [[1]], {}, {"a": 1}, {"low": 1}]
    draw, refused = random.Random(3), 0
    for _ in range(60):
        stage = draw.choice(list(FACTS))
        facts: Any = copy.deepcopy(draw.choice([run["facts"] for run in RUNS if run["stage"] == stage]))
        place = facts
        while True:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.25:
                place[key] = draw.choice(values)
                break
            place = place[key]
        record = copy.deepcopy(WHOLE)
        run = next(run for each in reversed(record["variants"]) for run in each["runs"] if run["stage"] == stage)
        run["facts"] = facts
        (tmp_path / "run.json").write_text(json.dumps(record))
        try:
            read = read_record(tmp_path)
        except VlmEdgeError as error:
            assert "facts: " in error.message  # noqa: PT017
            refused += 1
            continue
        if draw.random() < 0.1:
            assert run_html(read, {}).lstrip().lower().startswith("<!doctype html>")
    assert refused > 20
