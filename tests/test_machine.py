"""The processor's instruction sets and the CPUs that may be used, from files as Linux writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlm_edge import machine
from vlm_edge.backends.onnxruntime.engine import OnnxRuntimeOptions, session_options

EPYC = "processor : 0\nmodel name : AMD EPYC\nflags : fpu avx2 avx512f avx512_vnni avx512_bf16\n\nflags :\n"
XEON = "model name : Intel(R) Xeon(R)\nflags : avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16\n"
OLD = "model name : Old\nflags : sse4_2 avx2\n"
CORTEX = "CPU implementer : 0x41\nCPU part : 0xd40\nFeatures : asimd asimddp\n"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder read instead of /proc, and 8 CPUs in the affinity mask."""
    (tmp_path / "self").mkdir()
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "allowed_cpus", lambda: list(range(8)))
    machine.processor.cache_clear()
    yield tmp_path
    machine.processor.cache_clear()


@pytest.mark.parametrize(
    ("name", "cpuinfo", "model", "has", "lacks", "bfloat16"),
    [
        ("x86_64", EPYC, "AMD EPYC", ["AVX512-BF16", "VNNI", "AVX512", "AVX2"], ["AMX"], True),
        ("AMD64", XEON, "Intel(R) Xeon(R)", ["AMX", "AVX512-BF16", "VNNI", "AVX512", "AVX2"], [], True),
        ("x86_64", OLD, "Old", ["AVX2"], ["AMX", "AVX512-BF16", "VNNI", "AVX512"], False),
        ("aarch64", CORTEX, "0x41 0xd40", ["dot product"], ["i8mm", "BF16"], False),
        ("riscv64", "", None, [], [], False),
    ],
)
def test_kernels_are_told_from_the_flags_of_the_first_cpu(
    proc: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    cpuinfo: str,
    model: str | None,
    has: list[str],
    lacks: list[str],
    bfloat16: bool,
) -> None:
    (proc / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(machine.platform, "machine", lambda: name)
    assert machine.processor().model == model
    kernels = machine.kernels()
    assert [kernel for kernel, there in kernels.items() if there] == has
    assert [kernel for kernel, there in kernels.items() if not there] == lacks
    assert machine.computes_bfloat16() is bfloat16


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def mount_2(proc: Path, path: str, root: str = "/") -> Path:
    """A version 2 hierarchy, this process in its group ``path``."""
    (proc / "self/cgroup").write_text(f"0::{path}\n")
    (proc / "self/mountinfo").write_text(
        f"25 1 0:22 / /proc rw - proc proc rw\n30 1 0:26 {root} {proc}/fs rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    )
    return proc / "fs"


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("250000 100000", 2),
        ("3200000 100000", 8),
        ("", 8),
    ],
)
def test_a_quota_of_version_2_bounds_the_cpus(proc: Path, quota: str, cpus: int) -> None:
    write(mount_2(proc, "/") / "cpu.max", quota + "\n")
    assert machine.usable_cpus() == cpus


def test_the_least_quota_of_the_group_and_those_around_it_counts(proc: Path) -> None:
    mounted = mount_2(proc, "/pods/one/main")
    write(mounted / "pods/one/main/cpu.max", "max 100000\n")
    write(mounted / "pods/one/cpu.max", "300000 100000\n")
    write(mounted / "pods/cpu.max", "600000 100000\n")
    assert machine.usable_cpus() == 3


@pytest.mark.parametrize(("path", "root"), [("/docker/abc", "/docker/abc"), ("/../..", "/"), ("/elsewhere", "/docker")])
def test_a_container_that_sees_its_own_group_as_the_root(proc: Path, path: str, root: str) -> None:
    write(mount_2(proc, path, root) / "cpu.max", "200000 100000\n")
    assert machine.usable_cpus() == 2


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("150000", 1), ("400000", 4)])
def test_a_quota_of_version_1_bounds_the_cpus(proc: Path, quota: str, cpus: int) -> None:
    (proc / "self/cgroup").write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n")
    (proc / "self/mountinfo").write_text(
        f"31 1 0:27 /docker/abc {proc}/memory ro - cgroup cgroup rw,memory\n"
        f"32 1 0:28 /docker/abc {proc}/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
    )
    write(proc / "cpu,cpuacct/cpu.cfs_quota_us", quota + "\n")
    write(proc / "cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    write(proc / "memory/cpu.cfs_quota_us", "100000\n")  # of another controller: not looked at
    write(proc / "memory/cpu.cfs_period_us", "100000\n")
    assert machine.usable_cpus() == cpus


@pytest.mark.usefixtures("proc")
def test_without_control_groups_the_affinity_mask_counts() -> None:
    assert machine.usable_cpus() == 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't pin processes")
def test_the_affinity_mask_bounds_every_engine_and_torch() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from vlm_edge.backends.onnxruntime.engine import OnnxRuntimeOptions, session_options\n"
        "from vlm_edge.backends.openvino.engine import compile_properties\n"
        "from vlm_edge.evaluation.host import host_record\n"
        "from vlm_edge.machine import usable_cpus\n"
        "print(usable_cpus(), session_options(32, OnnxRuntimeOptions()).intra_op_num_threads,\n"
        "      compile_properties(32, {})['INFERENCE_NUM_THREADS'], host_record()['cores'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1", "1"]


def test_a_quota_bounds_sessions_and_torch(proc: Path, tiny_clip: Path) -> None:
    import torch

    from vlm_edge.families.loading import load_checkpoint

    write(mount_2(proc, "/") / "cpu.max", "200000 100000\n")
    assert session_options(32, OnnxRuntimeOptions()).intra_op_num_threads == 2
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        load_checkpoint(tiny_clip)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_nothing_counts_cpus_by_itself() -> None:
    package = Path(machine.__file__).parent
    users = [file.name for file in sorted(package.rglob("*.py")) if "cpu_count(" in file.read_text(encoding="utf-8")]
    assert users == ["doctor.py", "machine.py"]  # doctor prints the machine's beside those that may be used
