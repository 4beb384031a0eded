"""YAML and JSON from outside, and the words of each refusal."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.documents import MAX_YAML_BYTES, parse_json, parse_yaml, read_text, read_yaml
from vlm_edge.errors import RecipeError, short, shown


def fault(text: str) -> str:
    with pytest.raises(RecipeError) as error:
        parse_yaml(text, "r.yaml")
    (found,) = error.value.faults
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: [1, -2, 0x1f, 0, 1.5, .5, 1e-3, 5E+2]", {"a": [1, -2, 31, 0, 1.5, 0.5, 0.001, 500.0]}),
        ("a: [true, False, null, ~, '']\nb:", {"a": [True, False, None, None, ""], "b": None}),
        ("[yes, no, on, Off, y]", ["yes", "no", "on", "Off", "y"]),
        ("[2024-13-45, 2024-01-01, 1:30, 1_000, 1.2.3]", ["2024-13-45", "2024-01-01", "1:30", "1_000", "1.2.3"]),
        ("1: a\nnull: b\nyes: c", {"1": "a", "null": "b", "yes": "c"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("'<<': 1", {"<<": 1}),
        ("", None),
    ],
)
def test_values_are_those_of_the_core_schema(text: str, value: Any) -> None:
    assert parse_yaml(text, "r.yaml") == value


def test_what_is_not_finite_is_read_as_it_is_written() -> None:
    low, high, nan = parse_yaml("[-.inf, .inf, .nan]", "r.yaml")
    assert (low, high) == (-math.inf, math.inf)
    assert math.isnan(nan)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "r.yaml:6:8: more than 100,000 keys and values (what an alias repeats counts each time)"),
        ("a: 1\nb: &x [*x]", "r.yaml:2:8: the alias *x is inside what it stands for"),
        ("a: *nowhere", "r.yaml:1:4: "),
        ("a: 1\nc: {b: 1, b: 2}", "r.yaml:2:11: the key 'b' is written twice; the first is in line 2"),
        ("x: &x {a: 1}\ny:\n  <<: *x", "r.yaml:3:3: merge keys (<<) are not read; write the keys out"),
        ("epochs: !!int x", "r.yaml:1:9: tags ('tag:yaml.org,2002:int') are not read"),
        ("on: !!bool maybe", "r.yaml:1:5: tags ('tag:yaml.org,2002:bool') are not read"),
        ("x: !!python/object/apply:os.system [ls]", "r.yaml:1:4: tags ("),
        ("seed: " + "9" * 5000, "r.yaml:1:7: a number of 5,000 digits; put text in quotes"),
        ("seed: 010", "r.yaml:1:7: '010': a number does not begin with 0; put text in quotes"),
        ("seed: 0o17", "r.yaml:1:7: '0o17': a number does not begin with 0"),
        ("a: " + "[" * 3000, "r.yaml:1:53: nested more than 50 levels deep"),
        ("k" * 300 + ": 1", "r.yaml:1:1: a key is one line of at most 200 characters"),
        ('"a\\nb": 1', "r.yaml:1:1: a key is one line of at most 200 characters"),
        ("[a]: 1", "r.yaml:1:1: a key is a text, not a mapping or a list"),
        ("a: &x b\n*x : 1", "r.yaml:2:1: a key is a text, not an alias"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1: a second document begins"),
        ('a: "\\e[31m"', "r.yaml:1:4: '\\x1b[31m' holds a control character, U+001B"),
        ("a: [1", "r.yaml:2:1: not YAML: "),
        ("a: b: c", "r.yaml:1:5: not YAML: mapping values are not allowed in this context"),
        ("a: \x07", "r.yaml: not YAML: "),
    ],
)
def test_each_refusal_has_its_line_and_column(text: str, message: str) -> None:
    found = fault(text)
    assert found.startswith(message)
    assert len(found) < 300


def test_an_alias_repeats_its_depth_too() -> None:
    deep = "[" * 40 + "]" * 40
    assert "nested more than 50" in fault(f"a: &a {deep}\nb: {'[' * 20}*a{']' * 20}")


def test_only_a_regular_file_of_bounded_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_yaml(tmp_path / "large.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"regular file|directory"):
            read_text(path, 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is written twice"),
        ('{"a": NaN}', "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('["x\\ud800"]', "half of a surrogate pair"),
        ('{"x\\uDC01": 1}', "half of a surrogate pair"),
        ("[" + "9" * 5000 + "]", "digits"),
        ("{", "Expecting"),
    ],
)
def test_json_is_held_to_what_the_standard_leaves_open(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_whole_pairs_of_surrogates_are_text() -> None:
    assert parse_json('["\\ud83d\\ude00"]') == ["\U0001f600"]


def test_a_message_quotes_at_most_80_characters_of_a_value() -> None:
    wide: Any = ["x"] * 9
    for _ in range(40):
        wide = [wide] * 9  # 9 ** 40 values
    for value in ("a" * 10**6, wide, {str(key): key for key in range(50_000)}, 10**5000, "\x1b[31m\n" * 50):
        assert len(shown(value)) <= 80
        assert shown(value).isprintable()
    assert [shown(value) for value in (None, True, "a", 1.5, {"b": [None]})] == [
        "null",
        "true",
        "'a'",
        "1.5",
        "{'b': [null]}",
    ]
    assert (short("it's"), short("a\x1bb"), short("\udcff")) == ("it's", "'a\\x1bb'", "'\\udcff'")
    assert (len(short("a" * 400)), len(short("a" * 401))) == (400, 80)


def test_mutated_yaml_is_read_or_refused_in_one_line() -> None:
    """Random edits of a recipe: a value or a RecipeError, never another exception, and no long message."""
    sources = [Path(__file__).parents[1] / name for name in ("recipes/quickstart.yaml", "calibration/easy-vqa.yaml")]
    texts = [source.read_text() for source in sources]
    parts = ["&a ", "*a", "[", "]", "{", "}", ": ", "\n", "<<: ", "!!int ", "0", "-", "'", '"', "\t", "\x00", "#", "%"]
    parts += ["|\n", "\ud7ff", "? ", ", ", "\\ud800", "9" * 5000, "x" * 500, "[" * 300, "- ", ".nan", "---\n"]
    generator = random.Random(20)
    refusals = []
    for _ in range(600):
        text = generator.choice(texts)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(text))
            text = text[:place] + generator.choice(parts) + text[place + generator.choice((0, 0, 1, 30)) :]
        try:
            parse_yaml(text, "r.yaml")
        except RecipeError as error:
            refusals.append(error.message)
    assert len(refusals) > 100
    assert max(map(len, refusals)) < 400
