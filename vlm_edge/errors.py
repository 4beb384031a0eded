"""The one error type that a user's mistake or a broken input ends in, and the quoting of a value in its message."""

from __future__ import annotations

import reprlib
from typing import Any

MAX_SHOWN = 80
"""Characters of a value that a message quotes."""
MAX_NAME = 400
"""Characters of a name or a path that a message repeats."""


class VlmEdgeError(Exception):
    """A failure that a person can act on: what went wrong and where, and the next step.

    Args:
        message: what is wrong, where, and what was allowed instead.
        hint: the next step, printed after ``hint:``.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class RecipeError(VlmEdgeError):
    """Every fault found in one file, each with its place (``quickstart.yaml: stages[2].prune.heads: ...``)."""

    def __init__(self, faults: list[str], hint: str | None = None) -> None:
        super().__init__("\n".join(faults), hint)
        self.faults = faults


class UsageError(VlmEdgeError):
    """A request that can't be met with the given input; the command line ends with 2, as for a wrong option."""


class _Short(reprlib.Repr):
    """A repr that visits a bounded part of a value, so that no nesting and no length makes it slow."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, MAX_SHOWN, MAX_SHOWN, MAX_SHOWN

    def repr_bool(self, x: bool, level: int) -> str:  # noqa: ARG002
        return str(x).lower()  # as YAML and JSON write it

    def repr_NoneType(self, x: None, level: int) -> str:  # noqa: ARG002, N802  (reprlib looks methods up by the type's name)
        return "null"

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 4 * MAX_SHOWN:  # Python refuses to print thousands of digits
            return f"a number of about {int(x.bit_length() * 0.30103) + 1:,} digits"
        return super().repr_int(x, level)


_SHORT = _Short()


def shown(value: Any) -> str:
    """``value`` as a message quotes it: at most :data:`MAX_SHOWN` characters, control characters escaped."""
    text = _SHORT.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def short(text: str) -> str:
    """A name or a path in a message: as it is, or as :func:`shown` has it where it is long or can't be printed."""
    return text if text.isprintable() and len(text) <= MAX_NAME else shown(text)
