"""Write the parts of docs/*.md that the code tells: stages' settings, the command line, the Python API.

``python docs/write_pages.py``. A part stands between ``<!-- NAME: written by docs/write_pages.py -->`` and
``<!-- end of NAME -->``; the rest of a page is written by hand.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

import vlm_edge
from vlm_edge.cli.main import COMMANDS, main
from vlm_edge.cli.stages import settings_of
from vlm_edge.core.budget import Judgement
from vlm_edge.core.gate import Gate, Tolerances
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.plan import PlannedRun
from vlm_edge.core.recipe import Recipe
from vlm_edge.core.record import RunRecord, VariantRecord
from vlm_edge.stages import STAGES

PAGES = Path(__file__).parent
PART = re.compile(r"(<!-- (\w+): written by docs/write_pages\.py -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
MEASURING = {"dry_run"}
"""Methods of pipelines that only the measurements call."""
RESULTS = (Recipe, PlannedRun, RunRecord, VariantRecord, Measurement, Judgement, Gate, Tolerances)
DOCSTRING_PARTS = ("Args:", "Returns:", "Raises:")


def settings() -> str:
    """One heading and table per stage."""
    lines: list[str] = []
    for name, spec in STAGES.items():
        lines += [f"### `{name}`", "", spec.summary, ""]
        lines += ["| setting | default | meaning |", "| --- | --- | --- |"]
        lines += [_setting(key, text) for key, text in settings_of(spec.config)]
        lines.append("")
    return "\n".join(lines)


def _setting(key: str, text: str) -> str:
    ending = re.search(r" ?\[(?:(required)|default: (.*))\]$", text)
    if ending is None:
        return f"| `{key}` | | {text} |"
    default = ending[1] or f"`{ending[2]}`"
    return f"| `{key}` | {default} | {text[: ending.start()]} |"


def commands() -> str:
    """The global options, then every command with its usage, help and options."""
    root = click.Context(main, info_name="vlm-edge")
    lines = ["## Global options", "", "They stand before the command: `vlm-edge --store PATH run recipe.yaml`.", ""]
    lines += _options(main, root)
    for section, names in COMMANDS.items():
        lines += ["", f"## {section}"]
        for name in names:
            command = main.get_command(root, name)
            assert command is not None
            context = click.Context(command, info_name=name, parent=root)
            usage = " ".join(["vlm-edge", name, *command.collect_usage_pieces(context)])
            lines += ["", f"### {name}", "", "```", usage, "```", "", _unwrapped(command.help or ""), ""]
            lines += _options(command, context)
            if name in STAGES:
                lines += ["", f"Settings for `--set`: [recipe.md](recipe.md#{name})."]
    return "\n".join(lines)


def _options(command: click.Command, context: click.Context) -> list[str]:
    options = [each for each in command.params if isinstance(each, click.Option)]
    records = (option.get_help_record(context) for option in options)
    rows = [f"| `{_cell(names)}` | {_cell(text)} |" for names, text in filter(None, records)]
    return ["| option | meaning |", "| --- | --- |", *rows] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def runtime() -> str:
    """The names of the Python API that answer on a device."""
    return _reference(name for name in vlm_edge.__all__ if _home(name).startswith("vlm_edge.runtime"))


def compressor() -> str:
    """The names of the Python API that make, measure and judge what a device runs."""
    return _reference(name for name in vlm_edge.__all__ if _home(name).startswith(("vlm_edge.api", "vlm_edge.core")))


def errors() -> str:
    """The errors that a caller may catch."""
    return _reference(name for name in vlm_edge.__all__ if _home(name) == "vlm_edge.errors")


def results() -> str:
    """The fields of what the calls return and take."""
    lines: list[str] = []
    for subject in RESULTS:
        lines += [f"### {subject.__name__}", "", _markdown(subject), "", "| field | type |", "| --- | --- |"]
        fields = [
            (name, str(kind)) for name, kind in inspect.get_annotations(subject).items() if name != "model_config"
        ]
        lines += [*(f"| `{name}` | `{_cell(kind)}` |" for name, kind in fields), ""]
    return "\n".join(lines)


def _home(name: str) -> str:
    return str(getattr(vlm_edge, name).__module__)


def _reference(names: Iterable[str]) -> str:
    lines: list[str] = []
    for name in sorted(names, key=lambda name: (name[0].isupper(), name)):
        subject = getattr(vlm_edge, name)
        lines += [f"### {name}", ""]
        if inspect.isfunction(subject):
            lines += [*_signature(name, subject), "", _markdown(subject), ""]
            continue
        if dataclasses.is_dataclass(subject) or issubclass(subject, Exception):
            lines += [*_signature(name, subject), ""]
        lines += [_markdown(subject), ""]
        for key, method in inspect.getmembers(subject, inspect.isfunction):
            if not key.startswith("_") and key not in MEASURING:
                lines += [*_signature(f"{name}.{key}", method), "", _markdown(method), ""]
    return "\n".join(lines)


class _Plain(str):
    """An annotation that is shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _signature(name: str, subject: Callable[..., Any]) -> list[str]:
    """A fence with the signature, its parameters on lines of their own where one line is too long."""
    signature = inspect.signature(subject)
    parameters = [
        each.replace(annotation=_Plain(each.annotation))
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    result = _Plain(signature.return_annotation)
    text = str(signature.replace(parameters=parameters, return_annotation=result))
    if inspect.isclass(subject):
        text = text.removesuffix(" -> None")
    if len(name + text) > 110:
        inner, _, result = text[1:].rpartition(")")
        text = "(\n    " + ",\n    ".join(re.split(r", (?=\*|\w+:)", inner)) + f",\n){result}"
    return ["```python", f"{name}{text}", "```"]


def _markdown(subject: Any) -> str:
    """A docstring in Markdown: its roles as code, ``Args:`` and ``Raises:`` as lists."""
    text = re.sub(r":\w+:`~?(?:vlm_edge\.(?:\w+\.)*)?([^`]+)`", r"``\1``", inspect.getdoc(subject) or "")
    lines: list[str] = []
    for block in re.split(r"\n(?=(?:Args|Returns|Raises):\n)", text.replace("``", "`")):
        title, _, body = block.partition("\n")
        if title in DOCSTRING_PARTS:
            entries = re.split(r"\n(?! )", textwrap.dedent(body).strip())
            named = [re.sub(r"^(\w+): ", r"`\1`: ", " ".join(entry.split())) for entry in entries]
            lines += [title, "", *(f"- {entry}" for entry in named), ""]
        else:
            lines += [block.strip(), ""]
    return "\n".join(lines).strip()


def _unwrapped(text: str) -> str:
    """Paragraphs as one line each, without click's mark against wrapping."""
    paragraphs = inspect.cleandoc(text).replace("\b", "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "commands": commands,
    "runtime": runtime,
    "compressor": compressor,
    "results": results,
    "errors": errors,
}


def written(page: str) -> str:
    """A page's text with its generated parts as the code tells them now."""
    return PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]().rstrip()}\n\n{found[3]}", page)


if __name__ == "__main__":
    for path in sorted(PAGES.glob("**/*.md")):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
