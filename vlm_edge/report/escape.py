"""Escaping of text from outside: one function for each kind of output.

Names in recipes, data and records come from whoever wrote them. A control character can move a terminal's cursor, a
direction mark can turn a line round, a line that starts with ``::`` is a command to GitHub's runner.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks of direction
    "\u2028\u2029\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"  # ends of line, what is no character
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")


def visible(text: object, keep: str = "") -> str:
    """Invisible characters that act (controls, direction marks) written as ``\\x1b``; those in ``keep`` stay."""

    def shown(found: re.Match[str]) -> str:
        character = found[0]
        if character in keep:
            return character
        code = ord(character)
        return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")

    return _UNSEEN.sub(shown, str(text))


_COMMAND = re.compile(r"^(\s*):|:(?=:)")


def terminal(text: object) -> str:
    """One line for a terminal or a log; no part of it is a command to GitHub's runner (``::name::``, ``##[name]``)."""
    line = _COMMAND.sub(lambda found: ": " if found[1] is None else f"{found[1]}\\x3a", visible(text))
    return line.replace("##[", "# #[")


def terminal_lines(text: object) -> str:
    """A message of several lines for a terminal, indented after the first."""
    return "\n  ".join(terminal(line) for line in str(text).split("\n"))


def on_terminal(value: T) -> T:
    """Escape every text of a record, a gate or a comparison by :func:`terminal`."""
    changed: T = _each_text(value, terminal)
    return changed


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, Enum) or value is None:
        return value
    if isinstance(value, str):
        return change(value)
    from pydantic import BaseModel  # here: every command loads this module, --help too

    if isinstance(value, BaseModel):
        fields = {name: _each_text(getattr(value, name), change) for name in type(value).model_fields}
        return type(value).model_construct(**fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: _each_text(getattr(value, each.name), change) for each in dataclasses.fields(value)}
        return type(value)(**fields)
    if isinstance(value, dict):
        return {_each_text(key, change): _each_text(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_each_text(each, change) for each in value)
    return value


def markdown(text: object) -> str:
    """One line of Markdown (GFM) that shows the text: no cell, heading, HTML, entity, link or picture starts in it."""
    line = visible(_BREAKS.sub(" ", str(text)))
    line = line.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    line = re.sub(r"[|`@]", r"\\\g<0>", line).replace("](", "]\\(").replace("][", "]\\[").replace("://", ":\\//")
    line = re.sub(r"\b(www)\.", r"\1\\.", line, flags=re.IGNORECASE)
    return re.sub(r"^(\s*)([#>~])", r"\1\\\2", line)


def markdown_block(text: str) -> list[str]:
    """Lines for a block of code that is fenced by three backticks."""
    return [visible(line.replace("```", "'''"), keep="\t") for line in text.split("\n")]


def markup(text: object) -> str:
    """Text within HTML or SVG, or within the quotes of an attribute."""
    return html.escape(visible(text, keep="\t\n"), quote=True)


def xml_text(text: object) -> str:
    """Text of characters that XML 1.0 allows (section 2.2); the XML writer escapes its markup."""
    return visible(text, keep="\t\n")


def command_data(text: object) -> str:
    """The message of a workflow command, as in actions/toolkit, packages/core/src/command.ts."""
    return visible(text, keep="\r\n").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: object) -> str:
    """A property of a workflow command."""
    return command_data(text).replace(":", "%3A").replace(",", "%2C")


def json_text(value: Any) -> str:
    """One JSON document and a newline; invisible characters that act are ``\\uXXXX``, which JSON reads back."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).replace("##[", "#\\u0023[")
    return _UNSEEN.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text) + "\n"
