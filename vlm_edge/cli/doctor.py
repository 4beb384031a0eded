"""``vlm-edge doctor``: report on packages, engines, CPU, folders and Hub, with a hint for each problem."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

import vlm_edge
from vlm_edge.cli.settings import Settings, json_option, pass_settings, print_json, stdout_console

Status = Literal["ok", "note", "absent", "broken"]

_STYLES = {"ok": "green", "note": "cyan", "absent": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class Check:
    """One line of the report. ``broken``: no recipe can run; ``absent``: an optional part is missing."""

    section: str
    name: str
    status: Status
    detail: str
    hint: str | None = None


@click.command()
@json_option
@pass_settings
@click.pass_context
def doctor(ctx: click.Context, settings: Settings, as_json: bool) -> None:
    """Report on this machine and installation: packages, engines, CPU, folders, Hub.

    The exit code is 1 if a part that every recipe needs is broken, else 0; engines and extras are optional.
    """
    with settings.working() as progress, progress.bar("loading the engines", None):
        python = Check("Python", "python", "ok", platform.python_version())
        checks = [python, *_packages(), *_engines(), *_hardware(), *_folders(settings), *_hub()]
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        _print(checks)
    ctx.exit(1 if any(check.status == "broken" for check in checks) else 0)


def _print(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    for section in dict.fromkeys(check.section for check in checks):
        console.print(Text(section, style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        table.add_column(width=0)
        table.add_column(min_width=6)
        table.add_column(min_width=26)
        for check in (check for check in checks if check.section == section):
            detail = f"{check.detail}\nhint: {check.hint}" if check.hint else check.detail
            table.add_row(" ", Text(check.status, style=_STYLES[check.status]), check.name, Text(detail))
        console.print(table)


def tested_versions() -> dict[str, str]:
    """Distribution -> version from constraints.txt: in the installed package, or at the root of the source tree."""
    package = Path(vlm_edge.__file__).parent
    files = (package / "_shipped" / "constraints.txt", package.parent / "constraints.txt")
    file = next((file for file in files if file.is_file()), None)
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {normalised(name): version for name, version in pairs}


def normalised(name: str) -> str:
    """A distribution's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _packages() -> Iterator[Check]:
    """Every direct dependency, under the smallest extra that requires it."""
    asked: dict[str, set[str]] = {}
    for requirement in metadata.requires("vlm-edge") or []:
        extra = next(iter(re.findall(r"extra == ['\"](.+?)['\"]", requirement)), "")
        asked.setdefault(extra, set()).add(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0])
    asked.pop("test", None)
    tested = tested_versions()
    seen = {"vlm-edge"}
    for extra in sorted(asked, key=lambda extra: (extra != "", len(asked[extra]) > 1, len(asked[extra]))):
        for name in sorted(asked[extra] - seen):
            yield _package(name, extra, tested.get(normalised(name)))
        seen |= asked[extra]


def _package(name: str, extra: str, tested: str | None) -> Check:
    section = f"Packages of the extra {extra!r}" if extra else "Packages"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        status: Status = "absent" if extra else "broken"
        return Check(section, name, status, "not installed", f"pip install 'vlm-edge[{extra}]'" if extra else None)
    if tested and found.split("+")[0] != tested:
        return Check(section, name, "note", f"{found}; tested with {tested}")
    return Check(section, name, "ok", found)


def _engines() -> Iterator[Check]:
    """Every engine of the table, and torch, which trains and exports."""
    from vlm_edge.backends import backends

    for name in backends():
        yield _engine(name)
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Check("Engines", "torch", "absent", _first_line(error), "pip install 'vlm-edge[compress]'")
        return
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    yield Check("Engines", "torch", "ok", f"for export, prune and distill; CUDA device: {cuda}")


def _engine(name: str) -> Check:
    """The check of one engine. Without the reference engine no recipe runs at all."""
    from vlm_edge.backends import REFERENCE, engine_available

    missing: Status = "broken" if name == REFERENCE else "absent"
    try:
        reason = engine_available(name)
    except (ImportError, OSError) as error:
        reason = _first_line(error)
    return Check("Engines", name, missing if reason else "ok", reason or "runs here")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _hardware() -> Iterator[Check]:
    from vlm_edge.evaluation.host import host_fingerprint, host_record
    from vlm_edge.machine import kernels

    host = host_record()
    yield Check("Machine", "cpu", "ok", str(host["cpu"] or host["machine"]))
    yield Check("Machine", "instruction sets", "ok", ", ".join(host["isa"]) or "none that matter to INT8")
    has = kernels()
    none = ", ".join(name for name, there in has.items() if not there)
    there = ", ".join(name for name, there in has.items() if there) or "plain"
    yield Check("Machine", "kernels", "ok", f"{there}{none and f' (no {none})'}: engines compute with these")
    yield Check("Machine", "threads", "ok", f"{host['cores']} usable of {os.cpu_count()}")
    memory = f"{host['memory_mb']:,} MiB" if host["memory_mb"] else "unknown"
    yield Check("Machine", "memory", "ok", memory)
    yield Check("Machine", "fingerprint", "ok", f"{host_fingerprint()} (latencies are kept for this host)")


def _folders(settings: Settings) -> Iterator[Check]:
    for name, folder in (("store", settings.store), ("runs", settings.runs)):
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not os.access(existing, os.W_OK):
            yield Check("Folders", name, "broken", f"{folder}: {existing} can't be written", f"give another --{name}")
            continue
        yield Check("Folders", name, "ok", f"{folder}, {shutil.disk_usage(existing).free / 1e9:,.1f} GB free")


def _hub() -> Iterator[Check]:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    detail = "offline (HF_HUB_OFFLINE): models come from folders, the zoo and the cache" if offline else "online"
    yield Check("Hugging Face Hub", "downloads", "note" if offline else "ok", detail)
    yield Check("Hugging Face Hub", "cache", "ok", f"{home}{'' if home.is_dir() else ' (not there yet)'}")
