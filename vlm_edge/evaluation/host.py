"""The machine that a measurement was taken on: a record, a fingerprint of what makes latencies comparable, conditions.

Sources of the conditions (load, clock rates, throttling, pressure, stolen time): https://www.kernel.org/doc/html/latest:
admin-guide/pm/cpufreq, driver-api/thermal/sysfs-api, accounting/psi, filesystems/proc (section 1.7); arch/x86
thermal_throttle counters under /sys/devices/system/cpu/cpu*/thermal_throttle.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlm_edge.backends import backends
from vlm_edge.core.workbench import package_version
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
    versions = {name: package_version(name) for name in (*engine_packages(), *OTHER_PACKAGES)}
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
        "packages": {name: version for name, version in versions.items() if version != "absent"},
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


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError):
        return None


SYSTEM = Path("/sys")
PROCESSES = Path("/proc")


def snapshot() -> dict[str, Any]:
    """The host at this moment, as JSON values; what can't be read is None.

    ``clock_s`` is a monotonic clock, ``throttled`` the sum of all throttle counters, ``pressure_us`` the time that
    some task waited for a CPU, ``busy_ticks`` and ``stolen_ticks`` the CPUs' time at work and at other guests' work.
    """
    return {
        "clock_s": time.monotonic(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "mhz": _extremes(_numbers("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", 1e-3)),
        "mhz_max": _extremes(_numbers("devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq", 1e-3)),
        "throttled": _total(_numbers("devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")),
        "celsius": _extremes(_numbers("class/thermal/thermal_zone[0-9]*/temp", 1e-3)),
        "cooling": _total(_numbers("class/thermal/cooling_device[0-9]*/cur_state")),
        "pressure_us": _pressure(),
        **dict(zip(("busy_ticks", "stolen_ticks", "all_ticks"), _cpu_ticks() or (None,) * 3, strict=True)),
    }


def passed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Conditions between two snapshots, as JSON values.

    Shares are of the time: ``cpu_waiting_share`` that some task was ready and had no CPU (pressure stall information),
    ``cpu_busy_share`` and ``cpu_stolen_share`` of all CPUs' time. ``throttle_events`` counts what the CPUs report;
    ``cooling_state`` is the sum of the cooling devices' states, above 0 while the system is being cooled down.
    """
    seconds = after["clock_s"] - before["clock_s"]

    def change(key: str) -> float | None:
        return None if before[key] is None or after[key] is None else after[key] - before[key]

    def share(key: str) -> float | None:
        part, whole = change(key), change("all_ticks")
        return round(part / whole, 4) if part is not None and whole else None

    waited = change("pressure_us")
    return {
        "seconds": round(seconds, 3),
        "load_average": {"before": before["load_average"], "after": after["load_average"]},
        "mhz": {"before": before["mhz"], "after": after["mhz"], "max": after["mhz_max"]},
        "throttle_events": change("throttled"),
        "celsius": {"before": before["celsius"], "after": after["celsius"]},
        "cooling_state": {"before": before["cooling"], "after": after["cooling"]},
        "cpu_waiting_share": round(waited / 1e6 / seconds, 4) if waited is not None and seconds > 0 else None,
        "cpu_busy_share": share("busy_ticks"),
        "cpu_stolen_share": share("stolen_ticks"),
    }


def _numbers(pattern: str, scale: float = 1.0) -> list[float]:
    """The numbers in the files below /sys that match; a file that can't be read is left out."""
    values = []
    for path in sorted(SYSTEM.glob(pattern)):
        with suppress(OSError, ValueError):
            values.append(scale * float(path.read_text().strip()))
    return values


def _extremes(values: list[float]) -> list[float] | None:
    return [round(min(values), 1), round(max(values), 1)] if values else None


def _total(values: list[float]) -> int | None:
    return int(sum(values)) if values else None


def _pressure() -> int | None:
    """``some avg10=... total=MICROSECONDS`` of /proc/pressure/cpu."""
    try:
        line = (PROCESSES / "pressure" / "cpu").read_text().splitlines()[0]
        return int(line.rpartition("total=")[2])
    except (OSError, IndexError, ValueError):
        return None


def _cpu_ticks() -> tuple[int, int, int] | None:
    """(busy, stolen, all) clock ticks of all CPUs; guests' ticks are inside user's and nice's."""
    try:
        ticks = [int(field) for field in (PROCESSES / "stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, IndexError, ValueError):
        return None
    idle, stolen = ticks[3] + ticks[4], ticks[7] if len(ticks) > 7 else 0
    return sum(ticks) - idle - stolen, stolen, sum(ticks)
