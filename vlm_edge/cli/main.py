"""``vlm-edge``: the table of commands, the global options, and exit codes.

Exit codes: 0 every budget met (or the command did what it was asked), 1 error, 2 usage (a faulty recipe is one),
3 a budget missed, 4 undecided, 5 not measured, 130 interrupted, 141 output pipe closed.

Nothing here imports more than click: a command's module is imported when that command is called.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from vlm_edge import __version__
from vlm_edge.cli.boundary import error_boundary
from vlm_edge.cli.settings import Settings

# section -> command -> (module that has it by its name, summary in the list of commands)
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Recipes": {
        "init": ("init", "Write a recipe for a model and a target."),
        "check": ("recipe", "Check a recipe without running it."),
        "plan": ("recipe", "List the stage runs of a recipe, and which the store already has."),
        "run": ("recipe", "Run a recipe: compress, measure, judge against its budgets."),
        "gate": ("gate", "Judge a run again from its record, alone or against another."),
        "report": ("report", "Show the record of a run."),
        "compare": ("report", "Show two or more runs side by side."),
    },
    "Single stages": {
        "export": ("stages", "Export a model to one ONNX graph per component."),
        "quantize": ("stages", "Quantize exported graphs to INT8."),
        "prune": ("stages", "Remove cross-attention heads from a model."),
        "distill": ("stages", "Replace a model's vision tower by a small student."),
        "compile": ("stages", "Compile exported graphs for a target's engine."),
    },
    "Measuring": {
        "evaluate": ("measure", "Measure the accuracy of an engine."),
        "bench": ("measure", "Measure the latency of an engine, alone or against another."),
        "explain": ("explain", "Explain why an INT8 graph or engine is slow, and what to do about it."),
        "answer": ("answer", "Ask an engine one question about one image."),
    },
    "Housekeeping": {
        "ls": ("ls", "List the runs and the artifacts in the store."),
        "gc": ("ls", "Remove artifacts that no run refers to."),
        "doctor": ("doctor", "Report on this machine, its engines and packages."),
        "zoo": ("zoo", "List the models that come with vlm-edge, or create one."),
    },
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, and lists commands by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        for section in COMMANDS.values():
            if cmd_name in section:
                module = importlib.import_module(f"vlm_edge.cli.{section[cmd_name][0]}")
                command: click.Command = getattr(module, cmd_name)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            from vlm_edge.names import near

            raise click.UsageError(f"no such command {args[0]!r}; {near(args[0], known)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_, summary) in section.items()])

    def invoke(self, ctx: click.Context) -> object:
        with error_boundary(ctx):
            return super().invoke(ctx)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 budgets met, 1 error, 2 usage or a faulty recipe, 3 a budget missed, "
    "4 undecided, 5 not measured.",
)
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".vlm-edge/store"),
    envvar="VLM_EDGE_STORE",
    show_envvar=True,
    show_default=True,
    help="Folder of finished artifacts.",
)
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    envvar="VLM_EDGE_RUNS",
    show_envvar=True,
    show_default=True,
    help="Folder of run records and bundles.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks on stderr.")
@click.option("-v", "--verbose", count=True, help="Libraries' warnings on stderr; twice for all logs.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="vlm-edge")
@click.pass_context
def main(ctx: click.Context, store: Path, runs: Path, quiet: bool, verbose: int, debug: bool) -> None:
    """Take a vision-language model to an edge box, and prove that it still works.

    Results go to stdout, progress and errors to stderr.
    """
    ctx.obj = Settings(store, runs, verbosity=-1 if quiet else verbose, debug=debug, toolbox=ctx.obj)


if __name__ == "__main__":
    sys.exit(main())
