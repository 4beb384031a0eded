"""Near matches for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 30


def near(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest known name in any case, or the list of what there is."""
    names = sorted(known)
    spelled = {each.lower(): each for each in names}
    matches = difflib.get_close_matches(str(name)[:200].lower(), spelled, n=2, cutoff=0.55)
    if matches:
        return "did you mean " + " or ".join(repr(spelled[match]) for match in matches) + "?"
    more = [f"and {len(names) - _LISTED:,} more"] if len(names) > _LISTED else []
    return "known: " + ", ".join([*names[:_LISTED], *more]) if names else "there is none"
