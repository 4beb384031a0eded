"""``vlm-edge gate``: a run judged again from its record, alone or against another run, with an exit code for CI."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vlm_edge.cli.ci import EXIT_CODES, Published, ci_options, publishing
from vlm_edge.cli.report import find_run
from vlm_edge.cli.settings import Settings, find_recipe, gathered, json_option, pass_settings, print_json
from vlm_edge.core.gate import Tolerances

if TYPE_CHECKING:
    from vlm_edge.api import Against

_Command = TypeVar("_Command", bound=Callable[..., Any])
_OFF = math.inf


def _number(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A positive number; ``off`` is infinite; None where the option is not given."""
    if value is None or value == "off":
        return None if value is None else _OFF
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf and not (number == 0 and param.name == "max_drop_pt"):
        raise click.BadParameter(f"{value!r} is neither a positive number nor 'off'", ctx, param)
    return number


def _tolerance(option: str, bounded: str) -> Callable[[_Command], _Command]:
    default = Tolerances.model_fields[option[2:].replace("-", "_")].default
    text = f"With --against: {bounded} `off` leaves it out.  [default: {default:g}]"
    return click.option(option, metavar="NUMBER", callback=_number, help=text)


@dataclass(frozen=True)
class _Against:
    """The options about the other run. A tolerance is None where it is not given, infinite for ``off``."""

    against: str | None
    measure: Path | None
    max_drop_pt: float | None
    max_slowdown: float | None
    max_growth: float | None
    max_memory_growth: float | None

    def found(self, settings: Settings) -> Against | None:
        """The run, and how much worse than it RUN may be.

        Raises:
            click.UsageError: something is asked of it, but there is none.
        """
        from vlm_edge.api import Against

        asked = {name: getattr(self, name) for name in Tolerances.model_fields}
        given = {name: None if value == _OFF else value for name, value in asked.items() if value is not None}
        if self.against is None and (given or self.measure):
            raise click.UsageError("tolerances and --measure need --against RUN2")
        if self.against is None:
            return None
        run = find_run(settings.runs, self.against)
        return Against(run, Tolerances.model_validate(given), self.measure, settings.store)


@click.command()
@click.argument("run")
@click.option("--recipe", type=click.Path(path_type=Path), help="Take the budgets from this recipe, not the recorded.")
@click.option("--variant", help="Judge this variant.  [default: the one that decides the run]")
@click.option("--against", metavar="RUN2", help="Also compare RUN with this run of another commit.")
@click.option(
    "--measure",
    type=click.Path(path_type=Path),
    metavar="MANIFEST",
    help="With --against: measure the latency of both engines now, in turns, on this task's data.",
)
@_tolerance("--max-drop-pt", "points of accuracy that RUN may lose.")
@_tolerance("--max-slowdown", "latency of RUN over that of RUN2.")
@_tolerance("--max-growth", "size of RUN over that of RUN2.")
@_tolerance("--max-memory-growth", "peak memory of RUN over that of RUN2.")
@json_option
@pass_settings
@gathered(_Against, "other")
@ci_options
def gate(
    settings: Settings,
    run: str,
    recipe: Path | None,
    variant: str | None,
    other: _Against,
    ci: Published,
    as_json: bool,
) -> None:
    """Judge RUN again from its record: a name under the runs folder, a run's folder, or a run.json.

    Nothing is made, and without --measure nothing is measured. Exit codes: 0 every budget met, 3 one missed,
    4 undecided, 5 not measured; 1 the record or a file of the run is damaged or missing, 2 usage.

    With --against, changes from RUN2 to RUN are judged too, each on its interval: accuracy paired sample by sample,
    latency by the speed-ups over the same baseline engine on the same host.
    """
    from vlm_edge.api import gate_run
    from vlm_edge.report.numbers import gate_lines

    against = other.found(settings)
    with publishing(run, ci) as publish, settings.working() as progress:
        record, judged = gate_run(
            find_run(settings.runs, run),
            recipe=find_recipe(recipe) if recipe else None,
            variant=variant,
            against=against,
            progress=progress,
            toolbox=settings.toolbox,
        )
        publish(record, judged)
    code = EXIT_CODES[judged.verdict]
    if as_json:
        print_json({**judged.model_dump(mode="json"), "exit_code": code})
    else:
        click.echo("\n".join(gate_lines(judged)))
    click.get_current_context().exit(code)
