"""The machine that a measurement was taken on: a record, and a fingerprint of what makes latencies comparable."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

from vlm_edge.backends import backends
from vlm_edge.machine import first_line, kernels, machine, processor, usable_cpus

RUNTIME_PACKAGES = ("numpy", "tokenizers", "pillow")
"""Packages that every engine's times depend on, beside its own."""
OTHER_PACKAGES = ("vlm-edge", "torch", "transformers", "onnx", "onnxscript", "nncf", "optimum")
ISA_FLAGS = (
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Instruction sets that matter to inference, as Linux names them on x86 and on ARM."""


def host_fingerprint() -> str:
    """Hex digest (16 characters) of CPU model, instruction sets, usable cores, system and engine versions.

    Latencies and compiled engines are never taken from a host with another fingerprint.
    """
    record = host_record()
    stable = {key: record[key] for key in ("cpu", "isa", "cores", "machine", "system")}
    stable["engines"] = {name: record["packages"].get(name) for name in engine_packages()}
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:16]


def host_record() -> dict[str, Any]:
    """The host as JSON values; what cannot be read is None. Load and governor are those of this moment."""
    found = processor()
    return {
        "cpu": found.model,
        "isa": [flag for flag in ISA_FLAGS if flag in found.flags],
        "cores": usable_cpus(),
        "machine": platform.machine(),
        "system": platform.system(),
        "release": platform.release(),
        "python": platform.python_version(),
        "memory_mb": _memory_mb(),
        "governor": first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "packages": _versions((*engine_packages(), *OTHER_PACKAGES)),
    }


def lacks_isa(isa: str) -> str | None:
    """Reason why this host can't run code for an instruction set of :class:`vlm_edge.core.target.Target`, or None."""
    if isa in ("x86", "x86-vnni", "arm") and machine() != isa.removesuffix("-vnni"):
        return f"the target's instruction set is {isa}, this host is {platform.machine()}"
    if isa == "x86-vnni" and not kernels()["VNNI"]:
        return "the target's instruction set is x86-vnni, this host's CPU has no VNNI"
    return None


def engine_packages() -> tuple[str, ...]:
    """Distributions whose versions change what engines compute or how fast."""
    return (*(name for spec in backends().values() for name in spec.packages), *RUNTIME_PACKAGES)


@cache
def _versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of those of the packages that are installed, without importing them."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError):
        return None
