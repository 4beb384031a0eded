"""Run a function on hostile input in a process of its own, and watch what it does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_edge.errors import VlmEdgeError

SECONDS = 10
"""CPU time; the clock may show six times as much on a busy machine."""
BYTES = 1_000_000_000
WRITES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
WITH_FOLDER = ("os.remove", "os.rmdir", "os.symlink", "os.link", "os.rename")
"""Events whose last argument is the descriptor of the folder that a name is relative to, or -1."""
FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "pickle.find_class",
    "pty.spawn",
)
READABLE = ("/usr", "/lib", "/etc", "/proc", "/sys", "/dev/null", "/dev/urandom", "/opt", sys.prefix, sys.base_prefix)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    ``status``: ``ok`` (``value`` is what the function returned), ``refused`` (a :class:`VlmEdgeError`, or a message and
    an exit code from the command line), or a fault: ``traceback``, ``signal``, ``hang``, ``memory``, ``outside`` (it
    read, wrote or removed something that is none of its business), ``stdin``.
    """

    status: str
    detail: str = ""
    value: Any = None

    @property
    def fault(self) -> bool:
        return self.status not in ("ok", "refused")


def run_in_sandbox(body: Callable[[], Any], inside: Path, *, project: Path) -> Outcome:
    """Call ``body`` in a forked process that may write under ``inside`` alone; its value travels back as JSON.

    Args:
        inside: the folder that may be written. ``inside.parent / "victim"`` may not be opened at all.
        project: the checkout; its files may be read.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            outcome = _watched(body, inside, project)
            payload = json.dumps([outcome.status, outcome.detail[:2000], outcome.value]).encode("utf-8", "replace")
        except BaseException as error:
            payload = json.dumps(["traceback", f"{type(error).__name__}: {error}"[:2000], None]).encode()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(payload)
        os._exit(0)
    os.close(writing)
    return _collected(child, reading)


def _collected(child: int, reading: int) -> Outcome:
    content, deadline = b"", time.monotonic() + 6 * SECONDS
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Outcome("hang", f"over {6 * SECONDS} s by the clock")
            piece = pipe.read(1 << 16)
            if not piece:
                break
            content += piece
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return Outcome("hang", f"over {SECONDS} s of CPU time")
    if os.WIFSIGNALED(status):
        return Outcome("signal", signal.Signals(os.WTERMSIG(status)).name)
    if not content:
        return Outcome("signal", f"exit status {os.WEXITSTATUS(status)} without a word")
    return Outcome(*json.loads(content))


def _watched(body: Callable[[], Any], inside: Path, project: Path) -> Outcome:
    before = _peak_bytes()
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS, spent + SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + 3 * BYTES, resource.RLIM_INFINITY))
    faults: list[str] = []
    _answer_yes()
    sys.addaudithook(_auditor(faults, inside, project))
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            value = body()
        outcome = Outcome("ok", value=value)
    except VlmEdgeError as error:
        outcome = Outcome("refused", str(error))
    except MemoryError:
        outcome = Outcome("memory", "MemoryError")
    except BaseException as error:
        before_reading_sources = len(faults)
        outcome = Outcome("traceback", f"{type(error).__name__}: {error}\n{traceback.format_exc()[-1500:]}")
        del faults[before_reading_sources:]
    if faults:
        return Outcome("outside", "; ".join(faults[:3]))
    used = _peak_bytes() - before
    return Outcome("memory", f"{used / 1e6:.0f} MB") if used > BYTES and not outcome.fault else outcome


def _answer_yes() -> None:
    """Give stdin a reader that says yes to whatever a library asks."""
    reading, writing = os.pipe()
    os.write(writing, b"y\n" * 100)
    os.dup2(reading, 0)
    sys.stdin = os.fdopen(0, closefd=False)


def _auditor(faults: list[str], inside: Path, project: Path) -> Callable[[str, tuple[Any, ...]], None]:
    root, victim = str(inside), str(inside.parent / "victim")
    readable = (*READABLE, str(project), root, str(inside.parent / "cache"))

    def absolute(name: Any, folder: int = -1) -> str | None:
        if not isinstance(name, str | bytes | os.PathLike):
            return None
        start = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path.cwd()
        return os.path.normpath(start / os.fsdecode(name))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN and arguments[1:2] != (["uname", "-p"],):  # platform.processor()
            faults.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, flags = absolute(arguments[0]), arguments[2] or 0
            if path is None:
                return
            real = os.path.realpath(path) if not path.startswith(("/proc", "/dev")) else path
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            allowed = (root, str(inside.parent / "cache"), "/dev/null", "/proc/self") if writes else readable
            if real.startswith(victim) or not real.startswith(allowed):
                faults.append(f"{'write' if writes else 'read'} {real}")
        elif event in WRITES:
            names = {"os.rename": arguments[:2], "os.link": arguments[1:2], "os.symlink": arguments[1:2]}
            for name in names.get(event, arguments[:1]):
                path = absolute(name, arguments[-1] if event in WITH_FOLDER else -1)
                if path is not None and not path.startswith((root, str(inside.parent / "cache"))):
                    faults.append(f"{event} {path}")

    return hook


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
