"""Read YAML and JSON that someone else wrote: nothing in a file makes reading it slow, large or surprising.

YAML is read as its 1.2 core schema has it (https://yaml.org/spec/1.2.2/#103-core-schema): ``no`` and ``2024-13-45`` are
text, ``1e-3`` is a number. What recipes and manifests have no use for is refused with its line and column: tags, merge
keys, several documents, a key written twice, a number that begins with 0, control characters. Size, depth, nodes (what
aliases repeat is counted each time) and digits are bounded.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import yaml

from vlm_edge.errors import MAX_SHOWN, RecipeError, VlmEdgeError, short, shown

MAX_YAML_BYTES = 2**20
MAX_DEPTH = 50
MAX_NODES = 100_000
MAX_DIGITS = 30
MAX_KEY = 200
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+|0o[0-7]+")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path, max_bytes: int) -> str:
    """A regular file of UTF-8, without its byte order mark; decompressed when it is named ``.gz``.

    Raises:
        OSError: it is missing, can't be read, or is no regular file (a pipe would be waited for).
        ValueError: it is too large, damaged, or not UTF-8.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("it is no regular file")
        stream: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        try:
            content = stream.read(max_bytes + 1)
        except (EOFError, zlib.error) as error:
            raise ValueError(f"it is damaged: {error}") from error
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes / 2**20:g} MiB")
    return content.decode("utf-8-sig")


def read_yaml(path: Path) -> Any:
    """The one document of a YAML file, as mappings with keys of text, lists, text, numbers, booleans and None.

    Raises:
        OSError, ValueError: as :func:`read_text` does.
        RecipeError: it is no YAML or holds what is refused, as ``FILE:LINE:COLUMN: ...``.
    """
    return parse_yaml(read_text(path, MAX_YAML_BYTES), path.name)


def parse_yaml(text: str, name: str) -> Any:
    """As :func:`read_yaml`, from a text; ``name`` stands for the file in messages."""
    try:
        return _Composer(name, yaml.parse(text, Loader=_LOADER)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = error.problem or error.context or "it can't be parsed"
        raise RecipeError([f"{name}{place}: not YAML: {problem[: 3 * MAX_SHOWN]}"]) from error
    except yaml.reader.ReaderError as error:
        raise RecipeError([f"{name}: not YAML: {error.reason} (at character {error.position + 1:,})"]) from error
    except RecursionError as error:  # libyaml's own Python side never recurses; the pure Python parser may
        raise RecipeError([f"{name}: nested more than {MAX_DEPTH} levels deep"]) from error


@dataclass(frozen=True)
class _Anchored:
    """The target of an alias: the value, how many nodes it has, and how deep it is."""

    value: Any
    nodes: int
    depth: int


@dataclass
class _Open:
    """A mapping or a list that is being read."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    nodes_before: int
    depth: int = 0
    key: str | None = None
    lines: dict[str, int] = field(default_factory=dict)
    """Of each key of a mapping."""


class _Composer:
    """Builds plain values from the parser's events, without recursion."""

    def __init__(self, name: str, events: Iterator[yaml.Event]) -> None:
        self.name = name
        self.events = events
        self.open: list[_Open] = []
        self.anchors: dict[str, _Anchored | None] = {}
        self.nodes = 0
        self.result: Any = None
        self.documents = 0

    def document(self) -> Any:
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self.refuse(event, "a second document begins; put it in a file of its own")
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                self.begin(event)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self.end(event)
            elif isinstance(event, yaml.ScalarEvent):
                self.scalar(event)
            elif isinstance(event, yaml.AliasEvent):
                self.alias(event)
        return self.result

    def refuse(self, event: yaml.Event, problem: str) -> NoReturn:
        assert event.start_mark is not None
        raise RecipeError([f"{self.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}: {problem}"])

    def begin(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        self.check_tag(event)
        if self.expects_key():
            self.refuse(event, "a key is a text, not a mapping or a list")
        if len(self.open) >= MAX_DEPTH:
            self.refuse(event, f"nested more than {MAX_DEPTH} levels deep")
        if event.anchor is not None:
            self.anchors[event.anchor] = None  # until it is complete
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.open.append(_Open(value, event.anchor, self.nodes))
        self.count(event, 1)

    def end(self, event: yaml.Event) -> None:  # noqa: ARG002
        done = self.open.pop()
        anchored = _Anchored(done.value, self.nodes - done.nodes_before, done.depth + 1)
        if done.anchor is not None:
            self.anchors[done.anchor] = anchored
        self.put(anchored)

    def scalar(self, event: yaml.ScalarEvent) -> None:
        self.check_tag(event)
        self.count(event, 1)
        problem = text_problem(event.value, "\n\t")
        if problem:
            self.refuse(event, problem)
        if self.expects_key():
            self.key(event)
            return
        plain = event.implicit[0] and event.tag is None
        anchored = _Anchored(self.plain(event) if plain else event.value, 1, 0)
        if event.anchor is not None:
            self.anchors[event.anchor] = anchored
        self.put(anchored)

    def alias(self, event: yaml.AliasEvent) -> None:
        if self.expects_key():
            self.refuse(event, "a key is a text, not an alias")
        name = str(event.anchor)
        if name not in self.anchors:
            self.refuse(event, f"the alias *{short(name)} has no anchor before it")
        anchored = self.anchors[name]
        if anchored is None:
            self.refuse(event, f"the alias *{short(name)} is inside what it stands for")
        if len(self.open) + anchored.depth > MAX_DEPTH:
            self.refuse(event, f"nested more than {MAX_DEPTH} levels deep")
        self.count(event, anchored.nodes)
        self.put(anchored)

    def key(self, event: yaml.ScalarEvent) -> None:
        holder, text = self.open[-1], event.value
        if text == "<<" and event.implicit[0]:
            self.refuse(event, "merge keys (<<) are not read; write the keys out")
        if len(text) > MAX_KEY or "\n" in text:
            self.refuse(event, f"a key is one line of at most {MAX_KEY} characters")
        if text in holder.lines:
            self.refuse(event, f"the key {shown(text)} is written twice; the first is in line {holder.lines[text]}")
        assert event.start_mark is not None
        holder.lines[text] = event.start_mark.line + 1
        holder.key = text

    def put(self, anchored: _Anchored) -> None:
        """The value's place: its list, its key, or the document."""
        if not self.open:
            self.result = anchored.value
            return
        holder = self.open[-1]
        holder.depth = max(holder.depth, anchored.depth)
        if isinstance(holder.value, list):
            holder.value.append(anchored.value)
        else:
            assert holder.key is not None
            holder.value[holder.key] = anchored.value
            holder.key = None

    def expects_key(self) -> bool:
        return bool(self.open) and isinstance(self.open[-1].value, dict) and self.open[-1].key is None

    def count(self, event: yaml.Event, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self.refuse(event, f"more than {MAX_NODES:,} keys and values (what an alias repeats counts each time)")

    def check_tag(self, event: yaml.ScalarEvent | yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        if event.tag is not None:
            self.refuse(event, f"tags ({shown(event.tag)}) are not read; write the value alone, text in quotes")

    def plain(self, event: yaml.ScalarEvent) -> Any:
        """The value of a scalar without quotes."""
        text = event.value
        if text in _WORDS:
            return _WORDS[text]
        if _LEADING_ZERO.fullmatch(text):
            self.refuse(event, f"{shown(text)}: a number does not begin with 0; put text in quotes")
        if _INT.fullmatch(text):
            if len(text) > MAX_DIGITS:
                self.refuse(event, f"a number of {len(text):,} digits; put text in quotes")
            return int(text, 0)
        return float(text) if len(text) <= 4 * MAX_DIGITS and _FLOAT.fullmatch(text) else text


def text_problem(text: str, allowed: str = "") -> str | None:
    """The fault of a text that is no printable UTF-8: a control character not ``allowed``, or half of a pair."""
    if text.isascii() and text.isprintable():
        return None
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in allowed:
            name = "half of a surrogate pair" if unicodedata.category(character) == "Cs" else "a control character"
            return f"{shown(text)} holds {name}, U+{ord(character):04X}"
    return None


def parse_json(text: str) -> Any:
    """JSON without what it leaves open: no key twice in an object, no NaN or Infinity, no half of a surrogate pair.

    Raises:
        ValueError: the message says what is wrong, in one line.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half of a surrogate pair, \\u{ord(error.object[error.start]):04x}") from error
    return value


def read_json(path: Path, max_bytes: int, hint: str) -> Any:
    """A JSON file; raises VlmEdgeError with ``hint`` where it can't be read or is none."""
    try:
        return parse_json(read_text(path, max_bytes))
    except (OSError, ValueError) as error:
        raise VlmEdgeError(f"{path}: can't be read as JSON: {reason(error)}", hint) from error


def reason(error: Exception) -> str:
    """The reason why a file could not be read, without its name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {shown(next(key for key in keys if keys[key] > 1))} is written twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
