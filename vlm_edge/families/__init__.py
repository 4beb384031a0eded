"""Vision-language architectures, one file each. Importing this package is cheap; the table loads torch when read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_edge.families.table import FAMILIES, family_for

__all__ = ["FAMILIES", "family_for"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vlm_edge.families import table

    return getattr(table, name)
