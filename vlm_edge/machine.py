"""The processor that this process runs on: its model, its instruction sets, and how many CPUs it may use."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

Machine = Literal["x86", "arm", "other"]

PROC = Path("/proc")
_MACHINES: dict[str, Machine] = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}

KERNELS: dict[Machine, dict[str, tuple[str, ...]]] = {
    "x86": {
        "AMX": ("amx_int8", "amx_bf16"),
        "AVX512-BF16": ("avx512_bf16",),
        "VNNI": ("avx512_vnni", "avx_vnni"),
        "AVX512": ("avx512f",),
        "AVX2": ("avx2",),
    },
    "arm": {"i8mm": ("i8mm",), "BF16": ("bf16",), "dot product": ("asimddp",)},
    "other": {},
}
"""Instruction sets that engines have kernels of their own for, the newest first, with Linux's flags for each (one is
enough). Results differ between them in the last digits, and times by several times."""


@dataclass(frozen=True)
class Processor:
    """The first CPU: its model (None where it can't be read) and its flags as Linux names them."""

    model: str | None
    flags: frozenset[str]


@cache
def processor() -> Processor:
    """The first CPU of /proc/cpuinfo."""
    try:
        text = (PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Processor(platform.processor() or None, frozenset())
    fields = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    flags = frozenset(fields.get("flags", fields.get("Features", "")).split())
    parts = [fields.get(key) for key in ("CPU implementer", "CPU part", "CPU variant")]
    arm = " ".join(part for part in parts if part)
    return Processor(fields.get("model name") or first_line(PROC / "device-tree" / "model") or arm or None, flags)


def machine(name: str | None = None) -> Machine:
    """The family of an architecture's name, by default this host's."""
    return _MACHINES.get((name or platform.machine()).lower(), "other")


def kernels(of: Machine | None = None, flags: frozenset[str] | None = None) -> dict[str, bool]:
    """Every entry of :data:`KERNELS` for a processor, by default this host's, and whether it has it."""
    have = processor().flags if flags is None else flags
    return {name: not have.isdisjoint(any_of) for name, any_of in KERNELS[of or machine()].items()}


def computes_bfloat16() -> bool:
    """Whether this x86 CPU multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    return not processor().flags.isdisjoint({"avx512_bf16", "amx_bf16"})


def allowed_cpus() -> list[int] | None:
    """The CPUs of this process's affinity mask, in order; None where the platform can't pin."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None


def usable_cpus() -> int:
    """Count the CPUs that this process may use: those of its affinity mask, within its control groups' CPU quotas.

    A quota of 2.5 CPUs gives 2: threads that wait for each other lose more than half a CPU when the third is throttled.
    """
    allowed = allowed_cpus()
    count = len(allowed) if allowed is not None else os.cpu_count() or 1
    return max(1, min([count, *(int(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """The quota, in CPUs, of each control group that this process is in, version 1 and 2, and of those around it.

    cgroups(7); https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu; proc_pid_mountinfo(5).
    """
    try:
        groups = [line.split(":", 2) for line in (PROC / "self" / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (PROC / "self" / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (group for group in groups if len(group) == 3):
        for mount in mounts:
            kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
            if (kind, controllers) == ("cgroup2", "") or (
                kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options
            ):
                yield from _quotas_up(path, PurePosixPath(mount[3]), Path(mount[4]))


def _quotas_up(path: str, root: PurePosixPath, point: Path) -> Iterator[float]:
    """The quotas from a group up to the one that is mounted at ``point``, which is ``root`` of the hierarchy."""
    group = PurePosixPath(path)
    inside = group.relative_to(root) if group.is_relative_to(root) and ".." not in group.parts else PurePosixPath()
    for folder in (point / inside, *list((point / inside).parents)[: len(inside.parts)]):
        quota, _, period = (first_line(folder / "cpu.max") or "").partition(" ")  # version 2: "max 100000"
        if not quota:
            quota = first_line(folder / "cpu.cfs_quota_us") or ""  # version 1: -1 where there is none
            period = first_line(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            yield int(quota) / int(period)


def first_line(path: Path) -> str | None:
    """A small system file's first line, or None where it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip("\0 ")
    except (OSError, IndexError):
        return None
