"""The one error type that a user's mistake or a broken input ends in."""

from __future__ import annotations


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
    """What was asked for can't be done with what was given; the command line ends with 2, as for a wrong option."""
