"""Facts of a graph as JSON: nodes in integers, nodes in float and why, time by operator, findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from vlm_edge.explain.causes import Finding
from vlm_edge.explain.kernels import decompressed
from vlm_edge.explain.view import Int8View
from vlm_edge.graphs.ops import ATTENTIONS

NAMES_SHOWN = 4
"""Most nodes that a finding names."""


@dataclass(frozen=True)
class Timing:
    """p50_ms: of a whole run. node_ms: the profiler's median by a node's position in the session's graph."""

    runs: int
    p50_ms: float
    node_ms: dict[int, float]

    def shares(self) -> dict[int, float]:
        """Each node's share of the time that all nodes take."""
        total = sum(self.node_ms.values()) or 1.0
        return {position: value / total for position, value in self.node_ms.items()}


def graph_facts(view: Int8View, findings: list[Finding], timing: Timing | None) -> dict[str, Any]:
    """JSON values: counts of nodes, ``kinds`` and ``operators`` with their time, and ``findings`` in order."""
    node_ms = timing.node_ms if timing else {}
    rows = [(node.op_type, view.kind(node), node_ms.get(place, 0.0)) for place, node in enumerate(view.graph.nodes)]
    timed = timing is not None
    return {
        **_counts(view, findings),
        "kinds": time_sums((({"kind": kind}, ms) for _, kind, ms in rows), timed=timed),
        "operators": time_sums((({"operator": name, "kind": kind}, ms) for name, kind, ms in rows), timed=timed),
        "findings": [_finding_facts(finding) for finding in findings],
    }


def node_name(node: onnx.NodeProto) -> str:
    """A node's name, or its operator and output where it has none."""
    return str(node.name) or f"{node.op_type} -> {node.output[0]}"


def _counts(view: Int8View, findings: list[Finding]) -> dict[str, Any]:
    """Counts of operators in integers, of products in float by reason, and of the Q/DQ that run."""
    causes = {id(node): finding.cause.name for finding in reversed(findings) for node in finding.nodes}
    integer: Counter[str] = Counter()
    reasons: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    restored: list[onnx.NodeProto] = []
    pairs: Counter[str] = Counter()
    for node in view.graph.nodes:
        kind = view.kind(node)
        if kind == "integer":
            integer[node.op_type] += 1
        elif kind == "int8 weights":
            reasons[node.op_type, "integer weights, computed in float"].append(node_name(node))
        elif kind == "float product":
            reasons[node.op_type, causes.get(id(node)) or _why_float(view, node)].append(node_name(node))
        elif kind == "weight DQ":
            restored.append(node)
        elif kind == "activation Q/DQ":
            pairs[node.op_type] += 1
    return {
        "integer": dict(integer.most_common()),
        "float": [
            {"operator": operator, "count": len(names), "why": why, "nodes": names[:NAMES_SHOWN]}
            for (operator, why), names in sorted(reasons.items(), key=lambda row: -len(row[1]))
        ],
        "quantize_dequantize": dict(sorted(pairs.items())),
        "weights_dequantized": {
            "count": len(restored),
            "elements": sum(view.constant_size(node.input[0]) for node in restored),
        },
    }


def _why_float(view: Int8View, node: onnx.NodeProto) -> str:
    """The reason that a product runs in float, where no cause claims it."""
    if node.op_type in ATTENTIONS:
        return "attention: computed in float by design"
    if any(view.weight_dequantizer(name) for name in node.input[:2]):
        return "weights dequantized at every run, data in float"
    if not any(view.is_constant(name) for name in node.input[:2]):
        return "product of two activations, not quantized"
    return decompressed(view, node) or "not quantized"


def time_sums(rows: Iterable[tuple[Mapping[str, str], float]], *, timed: bool) -> list[dict[str, Any]]:
    """Count, ms and share of the rows of one label, the most expensive first; times only where it is ``timed``."""
    counts: Counter[tuple[tuple[str, str], ...]] = Counter()
    ms: defaultdict[tuple[tuple[str, str], ...], float] = defaultdict(float)
    for label, row_ms in rows:
        counts[tuple(label.items())] += 1
        ms[tuple(label.items())] += row_ms
    total = sum(ms.values()) or 1.0
    found: list[dict[str, Any]] = []
    for key in sorted(counts, key=lambda key: (-ms[key], -counts[key])):
        times = {"ms": round(ms[key], 4), "share": round(ms[key] / total, 4)} if timed else {}
        found.append({**dict(key), "count": counts[key], **times})
    return found


def _finding_facts(finding: Finding) -> dict[str, Any]:
    cause = finding.cause
    return {
        "cause": cause.name,
        "title": cause.title,
        "nodes": len(finding.nodes),
        "operators": dict(Counter(node.op_type for node in finding.nodes).most_common()),
        "names": list(_first_names(finding)),
        "reasons": dict(finding.reasons.most_common()),
        "share": None if finding.cost is None else round(finding.cost, 4),
        "time_share": None if finding.time is None else round(finding.time, 4),
        "counted_in": dict(finding.counted_in),
        "why": cause.why,
        "remedy": cause.remedy,
    }


def _first_names(finding: Finding) -> Iterator[str]:
    """A few names, products before the Q/DQ around them."""
    ranked = sorted(finding.nodes, key=lambda node: node.op_type in ("QuantizeLinear", "DequantizeLinear"))
    for node in ranked[:NAMES_SHOWN]:
        yield node_name(node)
