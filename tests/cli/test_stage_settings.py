from __future__ import annotations

import re
from typing import Literal

import click
import pytest
from pydantic import Field

from vlm_edge.cli.stages import fact_lines, parse_assignments, settings_of
from vlm_edge.core.stage import StageConfig


class Inner(StageConfig):
    rate: float = Field(default=0.5, description="how fast")


class Outer(StageConfig):
    name: str
    epochs: int = Field(default=2, ge=1, description="passes over the data")
    inner: Inner = Inner()
    extra: Inner | None = None
    sites: tuple[str, ...] = Field(default_factory=tuple)
    mode: Literal["fast", "slow"] = "fast"
    stride: Literal[8, 16] | None = None


def test_assignments_are_yaml_and_dots_go_deeper() -> None:
    given = ["cross_attention.heads=0.5", "cross_attention.keep=[1, 2]", "recover=null", "name=a=b", "parts.*=int8"]
    assert parse_assignments(given) == {
        "cross_attention": {"heads": 0.5, "keep": [1, 2]},
        "recover": None,
        "name": "a=b",
        "parts": {"*": "int8"},
    }


def test_a_later_assignment_replaces_an_earlier_one() -> None:
    assert parse_assignments(["epochs=1", "epochs=2"]) == {"epochs": 2}


@pytest.mark.parametrize("given", ["epochs", "=1", "a..b=1", "epochs=[1", "epochs=1: 2: 3"])
def test_what_is_no_assignment_is_named(given: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(given[:4])):
        parse_assignments([given])


def test_going_below_a_plain_value_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="epochs already has a value"):
        parse_assignments(["epochs=1", "epochs.first=2"])


def test_settings_are_listed_with_default_and_description() -> None:
    assert settings_of(Outer) == [
        ("name", "[required]"),
        ("epochs", "passes over the data [default: 2]"),
        ("inner.rate", "how fast [default: 0.5]"),
        ("extra", "null leaves it out"),
        ("extra.rate", "how fast [default: 0.5]"),
        ("sites", "[default: []]"),
        ("mode", '(one of: fast, slow) [default: "fast"]'),
        ("stride", "(one of: 8, 16) [default: null]"),
    ]


def test_facts_are_lines_with_dotted_keys() -> None:
    facts = {"parity": {"decoder": 2.98023e-07, "vision": 0.5}, "heads": [1, 2], "curve": list(range(100)), "n": 3}
    assert fact_lines(facts) == [
        "parity.decoder: 2.98023e-07",
        "parity.vision: 0.5",
        "heads: [1, 2]",
        "curve: 100 values, see --json",
        "n: 3",
    ]
