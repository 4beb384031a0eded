"""``vlm-edge doctor``: what this machine and this installation can do, and what is in the way."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

import vlm_edge
from vlm_edge.cli.settings import Settings, json_option, pass_settings, print_json, stdout_console

Status = Literal["ok", "note", "absent", "broken"]

_ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16")
_STYLES = {"ok": "green", "note": "cyan", "absent": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class Check:
    """One line of the report. ``broken`` means that no recipe can run; ``absent`` that something optional can't."""

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
    """Say what this machine and installation can do: packages, engines, CPU, folders, Hub.

    The exit code is 1 if something without which nothing runs is broken, else 0: engines and extras are optional.
    """
    with settings.working() as progress, progress.bar("loading the engines", None):
        checks = [*_python(), *_packages(), *_engines(), *_hardware(), *_folders(settings), *_hub()]
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


def _python() -> Iterator[Check]:
    version = platform.python_version()
    yield Check("Python", "python", "ok", version)


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
    """Every direct dependency, under the smallest extra that asks for it."""
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
    yield _engine("onnxruntime", _onnxruntime, essential=True)
    yield _engine("openvino", _openvino)
    yield _engine("tensorrt", _tensorrt)
    yield _engine("torch", _torch)


def _engine(name: str, describe: Callable[[], str], *, essential: bool = False) -> Check:
    """Import the engine and describe it. A library that is there but does not load can raise anything."""
    missing: Status = "broken" if essential else "absent"
    try:
        return Check("Engines", name, "ok", describe())
    except ModuleNotFoundError as error:
        return Check("Engines", name, missing, f"not installed ({error.name})")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Check("Engines", name, missing, f"installed, but does not load: {str(error).strip().splitlines()[0]}")


def _onnxruntime() -> str:
    module = importlib.import_module("onnxruntime")
    return f"{module.__version__}, providers: {', '.join(module.get_available_providers())}"


def _openvino() -> str:
    module = importlib.import_module("openvino")
    return f"{module.__version__.split('-')[0]}, devices: {', '.join(module.Core().available_devices)}"


def _tensorrt() -> str:
    module = importlib.import_module("tensorrt")
    module.Runtime(module.Logger(module.Logger.ERROR))
    return str(module.__version__)


def _torch() -> str:
    module = importlib.import_module("torch")
    cuda = module.cuda.get_device_name(0) if module.cuda.is_available() else "no"
    return f"{module.__version__}, CUDA: {cuda} (export, prune, distill)"


def _hardware() -> Iterator[Check]:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = [flag for flag in _ISA_FLAGS if flags and flag in flags[1].split()]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("Machine", "cpu", "ok", f"{model[1] if model else platform.processor() or platform.machine()}")
    yield Check("Machine", "INT8 and wide instructions", "ok", ", ".join(known) or "none that this list knows")
    yield Check("Machine", "threads", "ok", f"{usable} usable of {os.cpu_count()}")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Check("Machine", "memory", "ok", f"{memory / 2**30:.1f} GiB")


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
