"""Near matches for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest known name, or the list of what there is."""
    names = sorted(known)
    matches = difflib.get_close_matches(str(name), names, n=2, cutoff=0.55)
    if matches:
        return "did you mean " + " or ".join(repr(match) for match in matches) + "?"
    return "known: " + ", ".join(names) if names else "there is none"
