"""An aarch64 Python with onnxruntime, run by qemu-user: for correctness, since its times mean nothing.

``python tests/support/aarch64.py`` (or ``make aarch64``) assembles it in a cache folder, without root: Debian's arm64
packages of Python 3.11 and what it links to, unpacked; the aarch64 wheels of the device's packages in the versions that
are installed here; and qemu-aarch64, the host's own or Debian's static one. About 100 MB are downloaded once.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import lzma
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

MIRROR = "https://deb.debian.org/debian"
SUITE = "bookworm"
DEBS = (
    "gcc-12-base libbz2-1.0 libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 libgomp1 liblzma5 libpython3.11-minimal "
    "libpython3.11-stdlib libsqlite3-0 libssl3 libstdc++6 libuuid1 python3.11-minimal zlib1g"
)
PACKAGES = ("numpy", "onnxruntime", "tokenizers", "pillow", "click", "pydantic", "pyyaml", "rich")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
CPU = "cortex-a76"
"""Dot products (as a Jetson Orin's Cortex-A78AE has), no matrix multiplication instructions."""
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0b
CPU revision\t: 1
"""
"""A Cortex-A76: onnxruntime reads the CPU from files, and crashes on those of an x86 host."""
TIMEOUT_S = 60
ROOT = Path(__file__).parents[2]


class UnavailableError(Exception):
    """Why there is no aarch64 Python here."""


@dataclass(frozen=True)
class Aarch64Python:
    """The assembled interpreter; ``folder`` holds ``sysroot`` and ``site``."""

    qemu: str
    folder: Path

    def run(self, *arguments: str | Path, timeout_s: float = 600) -> str:
        """Run Python with these arguments, this checkout's package importable; returns stdout.

        Raises:
            AssertionError: it fails.
        """
        command = [self.qemu, "-cpu", CPU, "-L", str(self.folder / "sysroot")]
        command += [str(self.folder / "sysroot/usr/bin/python3.11"), *map(str, arguments)]
        paths = os.pathsep.join(map(str, (self.folder / "site", ROOT)))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment = {"PYTHONPATH": paths, "HOME": str(self.folder), "LANG": "C.UTF-8", "PATH": os.defpath, **threads}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def assembled() -> Aarch64Python:
    """What was assembled before.

    Raises:
        UnavailableError: nothing was.
    """
    if platform.machine() == "aarch64":
        raise UnavailableError("this host is an aarch64 one: the other tests run on it already")
    folder = cache_folder()
    if not (folder / "done").is_file():
        raise UnavailableError(f"no aarch64 Python in {folder.parent}: run `make aarch64`")
    return Aarch64Python((folder / "done").read_text(encoding="utf-8"), folder)


def assemble() -> Aarch64Python:
    """Download and unpack what isn't there yet.

    Raises:
        UnavailableError: the network, pip or a package is missing.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if not (folder / "done").is_file():
            for part in ("sysroot", "site"):
                shutil.rmtree(folder / part, ignore_errors=True)
            _unpack_python(folder / "sysroot")
            _install_wheels(folder / "site")
            qemu = _qemu(folder)
            try:
                Aarch64Python(qemu, folder).run("-c", "import onnxruntime, tokenizers, PIL, yaml", timeout_s=120)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                raise UnavailableError(f"it doesn't run: {error}") from error
            (folder / "done").write_text(qemu, encoding="utf-8")
    return assembled()


def cache_folder() -> Path:
    """Named by what is in it, so that other versions get another folder."""
    parts = [SUITE, DEBS, CPUINFO, *PLATFORMS, *_pins()]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm-edge" / "aarch64" / digest


def _pins() -> list[str]:
    return [f"{name}=={version(name)}" for name in PACKAGES]


def _unpack_python(sysroot: Path) -> None:
    for content in _debs("arm64", DEBS.split()):
        with _data_archive(content) as archive:
            archive.extractall(sysroot, filter="tar")
    (sysroot / "proc").mkdir()
    (sysroot / "proc/cpuinfo").write_text(CPUINFO, encoding="utf-8")
    cpus = sysroot / "sys/devices/system/cpu"
    (cpus / "cpu0/topology").mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0\n", encoding="utf-8")


def _install_wheels(site: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--target", str(site), "--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:"]
    command += [item for name in PLATFORMS for item in ("--platform", name)]
    done = subprocess.run([*command, *_pins()], capture_output=True, text=True)
    if done.returncode != 0:
        raise UnavailableError(f"pip can't install {', '.join(_pins())} for aarch64: {done.stderr.strip()[-300:]}")


def _qemu(folder: Path) -> str:
    """The host's qemu-aarch64, or Debian's static one, taken out of its package."""
    if found := shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64"):
        return found
    if platform.machine() != "x86_64":
        raise UnavailableError("no qemu-aarch64 here: install qemu-user")
    (content,) = _debs("amd64", ["qemu-user-static"])
    with _data_archive(content) as archive:
        file = archive.extractfile("./usr/bin/qemu-aarch64-static")
        assert file is not None
        (folder / "qemu-aarch64").write_bytes(file.read())
    (folder / "qemu-aarch64").chmod(0o755)
    return str(folder / "qemu-aarch64")


def _debs(architecture: str, names: Sequence[str]) -> Iterator[bytes]:
    """The packages' files, their sha256 as the mirror's index says it."""
    index = lzma.decompress(_download(f"dists/{SUITE}/main/binary-{architecture}/Packages.xz")).decode()
    found = {}
    for paragraph in index.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Package") in names:
            found[fields["Package"]] = fields["Filename"], fields["SHA256"]
    for name in names:
        if name not in found:
            raise UnavailableError(f"{MIRROR} has no package {name} for {architecture}")
        path, digest = found[name]
        content = _download(path)
        if hashlib.sha256(content).hexdigest() != digest:
            raise UnavailableError(f"{MIRROR}/{path} is not what the index says")
        yield content


def _download(path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"{MIRROR}/{path}", timeout=TIMEOUT_S) as response:
            content: bytes = response.read()
    except OSError as error:
        raise UnavailableError(f"{MIRROR}/{path}: {error}") from error
    return content


@contextmanager
def _data_archive(deb: bytes) -> Iterator[tarfile.TarFile]:
    """The files of a .deb: an ar archive (deb(5)) with a member data.tar.xz, each member after a header of 60 bytes."""
    position = len(b"!<arch>\n")
    while not deb[position : position + 16].startswith(b"data.tar"):
        position += 60 + (int(deb[position + 48 : position + 58]) + 1) // 2 * 2
    size = int(deb[position + 48 : position + 58])
    with tarfile.open(fileobj=io.BytesIO(deb[position + 60 : position + 60 + size])) as archive:
        yield archive


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(f"aarch64 Python: {assemble().folder}", file=sys.stderr)
    except UnavailableError as reason:
        print(f"no aarch64 Python, so its tests will be skipped: {reason}", file=sys.stderr)
