"""The rule for images that can't be read: a few are skipped and named, more than 1% are an error."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_edge.errors import VlmEdgeError

MAX_UNREADABLE = 0.01
"""The share of a split's images that may be skipped."""


def check_unreadable(dataset: str, split: str, unreadable: Mapping[str, str], total: int) -> None:
    """Let a few unreadable images pass.

    Args:
        dataset: its name, for the message.
        split: the split's name, for the message.
        unreadable: why, by image.
        total: how many images there are, the unreadable ones included.

    Raises:
        VlmEdgeError: more than :data:`MAX_UNREADABLE` of them can't be read.
    """
    if len(unreadable) <= MAX_UNREADABLE * total:
        return
    name, reason = next(iter(unreadable.items()))
    raise VlmEdgeError(
        f"{dataset}: {len(unreadable)} of {total} {split} images can't be read, more than {MAX_UNREADABLE:.0%}; "
        f"the first is {name}: {reason}",
        "repair these images, or remove them from the data set",
    )
