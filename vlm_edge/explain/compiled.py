"""Facts of a compiled model as JSON: its kernels by precision, their time, and known causes of slow ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vlm_edge.explain.facts import NAMES_SHOWN, time_sums


class Kernel(Protocol):
    """One operation of a compiled model. ``kind`` is as in :meth:`vlm_edge.explain.view.Int8View.kind`, ``primitive``
    names the code that runs, ``ms`` is its median time."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def primitive(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def ms(self) -> float: ...


@dataclass(frozen=True)
class KernelCause:
    """A known cause of slow kernels. recovers: the share of a kernel's time that the remedy saves."""

    name: str
    title: str
    holds: Callable[[Any], bool]
    recovers: float
    why: str
    remedy: str


def kernel_facts(kernels: Sequence[Kernel], causes: Sequence[KernelCause], *, timed: bool) -> dict[str, Any]:
    """Counts, time by kind and by operator, and findings."""
    floats: defaultdict[str, list[str]] = defaultdict(list)
    for kernel in kernels:
        if kernel.kind == "float product":
            floats[kernel.type].append(kernel.name)
    return {
        "integer": _counted(kernel.type for kernel in kernels if kernel.kind == "integer"),
        "float": [
            {"operator": operator, "count": len(names), "why": "run in float", "nodes": names[:NAMES_SHOWN]}
            for operator, names in floats.items()
        ],
        "quantize_dequantize": _counted(kernel.type for kernel in kernels if kernel.kind == "activation Q/DQ"),
        "weights_dequantized": {"count": 0, "elements": 0},
        "kinds": time_sums((({"kind": kernel.kind}, kernel.ms) for kernel in kernels), timed=timed),
        "operators": time_sums(
            (({"operator": f"{each.type} {each.primitive}".strip(), "kind": each.kind}, each.ms) for each in kernels),
            timed=timed,
        ),
        "findings": _findings(kernels, causes, timed),
    }


def _counted(types: Iterable[str]) -> dict[str, int]:
    return dict(Counter(types).most_common())


def _findings(kernels: Sequence[Kernel], causes: Sequence[KernelCause], timed: bool) -> list[dict[str, Any]]:
    total = sum(kernel.ms for kernel in kernels) or 1.0
    found = []
    for cause in causes:
        hits = [kernel for kernel in kernels if cause.holds(kernel)]
        if not hits:
            continue
        share = sum(kernel.ms for kernel in hits) / total
        found.append(
            {
                "cause": cause.name,
                "title": cause.title,
                "nodes": len(hits),
                "operators": _counted(kernel.type for kernel in hits),
                "names": [kernel.name for kernel in hits[:NAMES_SHOWN]],
                "reasons": _counted(f"{each.type} by {each.primitive}" if each.primitive else "" for each in hits),
                "share": round(share * cause.recovers, 4) if timed else None,
                "time_share": round(share, 4) if timed else None,
                "counted_in": {},
                "why": cause.why,
                "remedy": cause.remedy,
            }
        )
    return sorted(found, key=lambda finding: (-(finding["share"] or 0.0), -finding["nodes"]))
