"""Which CPUs a measurement is pinned to: both engines to the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlm_edge.machine import allowed_cpus, first_line

CPUS = Path("/sys/devices/system/cpu")
STAT = Path("/proc/stat")


def idle_ticks() -> dict[int, int]:
    """Clock ticks that each CPU has been idle since the system started; empty where they can't be read."""
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
    return {int(row[0][3:]): int(row[4]) + int(row[5]) for row in fields}


def quiet_cpus(count: int, before: Mapping[int, int], after: Mapping[int, int]) -> list[int] | None:
    """``count`` CPUs for an engine: the fastest, one of each core as far as there are such, the idlest meanwhile.

    ``before`` and ``after`` are two readings of :func:`idle_ticks`. None where the platform can't pin, or there are
    fewer CPUs than threads.
    """
    usable = allowed_cpus()
    if usable is None or len(usable) < count:
        return None
    seen: dict[str, int] = {}

    def order(cpu: int) -> tuple[float, int, int]:
        return -_speed(cpu), before.get(cpu, 0) - after.get(cpu, 0), -cpu

    ranked = sorted(usable, key=order)
    siblings = {}
    for cpu in ranked:
        core = first_line(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)
        siblings[cpu] = seen.get(core, 0)
        seen[core] = seen.get(core, 0) + 1
    return sorted(sorted(ranked, key=lambda cpu: siblings[cpu])[:count])


def _speed(cpu: int) -> float:
    """How fast a CPU of a mixed set is at most: its capacity (ARM's big and little cores), else its clock rate."""
    folder = CPUS / f"cpu{cpu}"
    for file in (folder / "cpu_capacity", folder / "cpufreq" / "cpuinfo_max_freq"):
        text = first_line(file)
        if text is not None and text.isdigit():
            return float(text)
    return 0.0
