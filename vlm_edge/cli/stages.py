"""``export``, ``quantize``, ``prune``, ``distill``, ``compile``: one stage on folders, without a recipe or a store.

Each row of the table of stages is a command: the options are the inputs that the stage reads, the help is its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from vlm_edge.cli.on_device import ON_DEVICE, build_kit
from vlm_edge.cli.settings import Settings, echo, kit_lines, print_json
from vlm_edge.core.artifact import ArtifactKind, digest_folder, folder_size_bytes
from vlm_edge.errors import RecipeError, short, shown
from vlm_edge.stages import STAGES

_DATA = click.Option(
    ["--data"],
    type=click.Path(path_type=Path),
    required=True,
    help="Manifest of the task's data, such as calibration/easy-vqa.yaml.",
)
_ANY_DATA = click.Option(["--data"], type=click.Path(path_type=Path), help="Manifest of data that a setting may read.")
_TEACHER = click.Option(["--teacher"], help="The dense model to learn from.  [default: SOURCE]")
_TARGET = click.Option(
    ["--target"], default="cpu-ort", show_default=True, help="A name of recipes/targets/, or a target's file."
)
_SET = click.Option(
    ["-s", "--set", "assignments"],
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the stage, the value as in YAML; dots go deeper. May be repeated.",
)
_OUT = click.Option(
    ["-o", "--out"], type=click.Path(path_type=Path), required=True, help="Folder to write; must not exist yet."
)
_SEED = click.Option(["--seed"], type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON.")

_TRUST = click.Option(
    ["--trust-remote-code"], is_flag=True, help="Run the model code that SOURCE brings along. Read it first."
)

_OPTIONS = {"task": _DATA, "teacher": _TEACHER, "target": _TARGET}
"""The option of each input that a stage's ``reads`` may name."""
_SOURCES = {
    ArtifactKind.CHECKPOINT: "SOURCE is a zoo name (zoo:NAME), a Hugging Face folder or a Hub id.",
    ArtifactKind.GRAPHS: "SOURCE is a folder of graphs, such as `vlm-edge export` writes.",
}


class StageCommand(click.Command):
    """A command whose help lists the stage's settings, read from its config."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        rows = settings_of(STAGES[str(self.name)].config)
        if rows:
            with formatter.section("Settings (for --set, and for the stage in a recipe)"):
                formatter.write_dl(rows)


def settings_of(config: type[Any], prefix: str = "") -> list[tuple[str, str]]:
    """``(key, description and default)`` of every setting, those of nested configs with dotted keys."""
    from pydantic import BaseModel
    from pydantic_core import PydanticUndefined

    rows = []
    for name, field in config.model_fields.items():
        choices = [field.annotation, *get_args(field.annotation)]
        nested = next((each for each in choices if isinstance(each, type) and issubclass(each, BaseModel)), None)
        if nested is not None:
            if type(None) in choices:
                rows.append((f"{prefix}{name}", "null leaves it out"))
            rows += settings_of(nested, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        ending = "[required]" if default is PydanticUndefined else f"[default: {json.dumps(default)}]"
        words = (field.description, _choices(field.annotation), ending)
        rows.append((f"{prefix}{name}", " ".join(part for part in words if part)))
    return rows


def _choices(annotation: Any) -> str:
    """``(one of: a, b)`` for a Literal of words or numbers."""
    literal = next((each for each in (annotation, *get_args(annotation)) if get_origin(each) is Literal), None)
    return f"(one of: {', '.join(map(str, get_args(literal)))})" if literal else ""


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``["a.b=1", "c=[x]"]`` -> ``{"a": {"b": 1}, "c": ["x"]}``.

    Raises:
        click.BadParameter: one has no ``=``, a value that is not YAML, or goes below a plain value.
    """
    from vlm_edge.documents import parse_yaml

    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise click.BadParameter(f"{shown(assignment)} is not of the form KEY=VALUE", param_hint="--set")
        try:
            value = parse_yaml(text, "the value")
        except RecipeError as error:
            raise click.BadParameter(f"{shown(assignment)}: {error.message}", param_hint="--set") from error
        *parents, last = key.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise click.BadParameter(
                    f"{shown(assignment)}: {short(parent)} already has a value", param_hint="--set"
                )
        place[last] = value
    return result


def __getattr__(name: str) -> click.Command:
    """The command of a stage by the stage's name (PEP 562)."""
    if name not in STAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    spec = STAGES[name]
    inputs = [option for read, option in _OPTIONS.items() if read in spec.reads]
    if "task" in spec.optional:
        inputs.append(_ANY_DATA)
    if "trust_remote_code" in spec.config.model_fields:
        inputs.append(_TRUST)
    if spec.output is ArtifactKind.ENGINE:
        inputs += ON_DEVICE

    @click.pass_obj
    def run(settings: Settings, /, source: str, out: Path, assignments: Sequence[str], **options: Any) -> None:
        if spec.output is ArtifactKind.ENGINE:
            on_device, data = options.pop("on_device"), options.pop("data")
            if on_device:
                build_kit(settings, Path(source), out, data, as_json=options["as_json"])
                return
            if data is not None:
                raise click.UsageError("--data is for --on-device")
        config = parse_assignments(assignments)
        if options.pop("trust_remote_code", False):
            config["trust_remote_code"] = True
        _run(settings, name, source, out, config, options)

    return StageCommand(
        name,
        callback=run,
        params=[click.Argument(["source"]), _OUT, *inputs, _SET, _SEED, _JSON],
        help=f"{spec.summary}\n\n{_SOURCES[spec.source]}",
    )


def _run(
    settings: Settings, name: str, source: str, out: Path, config: dict[str, Any], options: dict[str, Any]
) -> None:
    from vlm_edge.api import run_stage
    from vlm_edge.cli.ci import EXIT_CODES
    from vlm_edge.core.budget import Verdict

    as_json = options.pop("as_json")
    with settings.working() as progress, progress.bar(f"{name} {source}", None):
        facts = run_stage(name, config, source, out, progress=progress, toolbox=settings.toolbox, **options)
    size = folder_size_bytes(out)
    if as_json:
        print_json({"out": str(out), "digest": digest_folder(out), "size_bytes": size, "facts": facts})
    else:
        for line in fact_lines(facts):
            echo(line)
        echo(f"{out}: {size / 1e6:,.2f} MB")
        if facts.get("kit"):
            for line in kit_lines(out, facts["unchecked"]):
                echo(line)
    if "unchecked" in facts:
        click.get_current_context().exit(EXIT_CODES[Verdict.NOT_MEASURED])


def fact_lines(facts: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A stage's facts, one a line: nested ones with dotted keys, long lists by their length."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            lines += fact_lines(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 12:
            lines.append(f"{prefix}{key}: {len(value)} values, see --json")
        else:
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            lines.append(f"{prefix}{key}: {text}")
    return lines
