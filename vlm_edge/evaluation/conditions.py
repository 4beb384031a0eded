"""Conditions of a host while something is timed: load, clock rates, throttling, pressure, stolen time.

Sources: https://www.kernel.org/doc/html/latest: admin-guide/pm/cpufreq, driver-api/thermal/sysfs-api,
accounting/psi, filesystems/proc (section 1.7); arch/x86 thermal_throttle counters under
/sys/devices/system/cpu/cpu*/thermal_throttle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SYSTEM = Path("/sys")
PROCESSES = Path("/proc")


def snapshot() -> dict[str, Any]:
    """The host at this moment, as JSON values; what can't be read is None.

    ``clock_s`` is a monotonic clock, ``throttled`` the sum of all throttle counters, ``pressure_us`` the time that
    some task waited for a CPU, ``busy_ticks`` and ``stolen_ticks`` the CPUs' time at work and at other guests' work.
    """
    ticks = _cpu_ticks()
    return {
        "clock_s": time.monotonic(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "mhz": _extremes(_numbers("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", 1e-3)),
        "mhz_max": _extremes(_numbers("devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq", 1e-3)),
        "throttled": _total(_numbers("devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")),
        "celsius": _extremes(_numbers("class/thermal/thermal_zone[0-9]*/temp", 1e-3)),
        "cooling": _total(_numbers("class/thermal/cooling_device[0-9]*/cur_state")),
        "pressure_us": _pressure(),
        "busy_ticks": ticks[0] if ticks else None,
        "stolen_ticks": ticks[1] if ticks else None,
        "all_ticks": ticks[2] if ticks else None,
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
    return [scale * value for path in sorted(SYSTEM.glob(pattern)) for value in _number(path)]


def _number(path: Path) -> Iterator[float]:
    try:
        yield float(path.read_text().strip())
    except (OSError, ValueError):
        return


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
