"""``vlm-edge explain``: explain the speed of a graph or an engine, and the next steps to make it faster."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_edge.cli.answer import bundle_folder
from vlm_edge.cli.settings import Settings, gathered, json_option, pass_settings, print_json, stdout_console
from vlm_edge.machine import usable_cpus
from vlm_edge.report.escape import terminal

if TYPE_CHECKING:
    from vlm_edge.evaluation.explain import Asked

OPERATORS_SHOWN = 8
NEGLIGIBLE = 0.005
WAITING = 1.7
"""A run this many times longer than its operators gets a remark."""
NOTHING_FOUND = "no known cause makes this graph slow"


def _dims(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """``("batch=2",)`` -> ``{"batch": 2}``."""
    sizes = {}
    for value in values:
        name, _, size = value.partition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            raise click.BadParameter(f"{value!r} is not of the form NAME=SIZE", ctx, param)
        sizes[name] = int(size)
    return sizes


@dataclass(frozen=True)
class _Options:
    data: Path | None
    components: tuple[str, ...]
    inputs: Path | None
    dims: dict[str, int]
    threads: int | None
    runs: int
    no_time: bool

    def asked(self, folder: Path) -> Asked:
        """The request for the graphs in ``folder``, whose manifest gives the number of threads by default."""
        from vlm_edge.api import find_task
        from vlm_edge.evaluation.explain import Asked
        from vlm_edge.processing.manifest import read_manifest
        from vlm_edge.processing.sealing import MANIFEST_NAME

        manifest = read_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
        own = manifest.engine.threads if manifest and manifest.engine else usable_cpus()
        return Asked(
            runs=0 if self.no_time else self.runs,
            threads=self.threads or own,
            task=find_task(self.data) if self.data else None,
            inputs=self.inputs,
            dims=self.dims,
            components=self.components,
        )


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Manifest of the task's data, for true inputs.")
@click.option("--component", "components", multiple=True, help="Only this one of a folder's. May be repeated.")
@click.option("--inputs", type=click.Path(dir_okay=False, path_type=Path), help="Inputs of a single graph, as .npz.")
@click.option("--dim", "dims", multiple=True, metavar="NAME=SIZE", callback=_dims, help="Size of a free dimension.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine.  [default: SOURCE's own]")
@click.option("--runs", type=click.IntRange(1, 1000), default=20, show_default=True, help="Runs to take medians of.")
@click.option("--no-time", is_flag=True, help="Run nothing: explain the optimized graph, without times.")
@json_option
@pass_settings
@gathered(_Options, "options")
def explain(settings: Settings, source: Path, options: _Options, as_json: bool) -> None:
    """Explain which operators of SOURCE run in INT8, which in float and why, their times, and how to make it faster.

    SOURCE is an .onnx file, a folder that `export`, `quantize` or `compile` wrote, a bundle, or a run's folder. The
    graph is loaded as the engine loads it, and the optimized graph is searched for known causes. Without
    --data or --inputs the times are of noise in the right shapes, one image (a row of a batch) at a time.
    """
    from vlm_edge.evaluation.explain import explain

    folder = bundle_folder(source)
    asked = options.asked(folder)
    with settings.working() as progress:
        report = explain(folder, asked, progress)
    if as_json:
        print_json(report)
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    console = stdout_console()

    def say(text: str, indent: int = 0, hanging: int = 0, style: str = "") -> None:
        for line in textwrap.wrap(
            terminal(text),
            console.width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + hanging),
            break_long_words=False,
            break_on_hyphens=False,
        ):
            console.print(line, style=style, markup=False, soft_wrap=True)

    for line in host_lines(report["host"]):
        say(line, hanging=2)
    for name, part in report["components"].items():
        console.print()
        say(f"{name}: {headline(part)}", hanging=2, style="bold")
        for line in state_lines(part):
            say(line, 2, 10)
        console.print(_operators_table(part))
        say("what to do, the costliest first:" if part["findings"] else NOTHING_FOUND, 2)
        shown = [  # but for findings that other causes account for, and that take next to no time
            each
            for each in part["findings"]
            if not each["counted_in"] or each["time_share"] is None or each["time_share"] >= NEGLIGIBLE
        ]
        for number, finding in enumerate(shown, 1):
            say(f"{number}. {finding_title(finding)}", 2, 3, "bold")
            for line in finding_lines(finding):
                say(line, 5, 7)


def host_lines(host: dict[str, Any]) -> Iterator[str]:
    """The CPU, the kernels that it lacks, and the relative times of its products."""
    yield f"{host['cpu'] or host['machine']}: {', '.join(host['isa']) or 'no instruction sets that matter to INT8'}"
    for lack in host["lacks"]:
        yield f"lacks {lack['name']}: {lack['means']}"
    if products := host.get("products"):
        yield (
            f"onnxruntime here, against a u8 x s8 product: float32 {products['float32_over_u8s8']:.1f}x as long, "
            f"u8 x u8 {products['u8u8_over_u8s8']:.1f}x, s8 x s8 {products['s8s8_over_u8s8']:.1f}x"
        )


def headline(part: dict[str, Any]) -> str:
    """The file, the median time of a run, and its inputs."""
    if "p50_ms" not in part:
        return f"{part['file']}, not timed"
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in part["inputs"].items())
    if len(part["inputs"]) > 3:
        shapes = f"{len(part['inputs'])} inputs"
    runs, threads = f"{part['runs']} runs", f"{part['threads']} thread{'s'[: part['threads'] > 1]}"
    return f"{part['file']}, p50 {part['p50_ms']:.3g} ms ({runs}, {threads}, {part['fed']}: {shapes})"


def state_lines(part: dict[str, Any]) -> Iterator[str]:
    """Operators in integers, products in float by reason, and the Q/DQ that run."""
    if part.get("p50_ms", 0.0) > WAITING * part.get("kernels_ms", 0.0):
        yield f"its operators take {part['kernels_ms']:.3g} ms: threads wait, the machine is busy or the graph is small"
    yield f"in INT8:  {_counted(part['integer']) or 'nothing'}"
    floats = [f"{row['count']} {row['operator']} ({row['why']})" for row in part["float"]]
    yield f"in float: {', '.join(floats) or 'no product'}"
    restored = part["weights_dequantized"]
    pairs = _counted(part["quantize_dequantize"]) or "none"
    yield f"Q/DQ that run: {pairs}; weights dequantized at every run: {restored['count'] or 'none'}" + (
        f" ({restored['elements']:,} elements)" if restored["count"] else ""
    )


def _operators_table(part: dict[str, Any]) -> Any:
    from rich.table import Table

    timed = "p50_ms" in part
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=True, header_style="dim")
    table.add_column("  operator", min_width=28)
    table.add_column("kind", min_width=16)
    for title in ("nodes", *(("ms", "share") if timed else ())):
        table.add_column(title, justify="right")
    shown, rest = part["operators"][:OPERATORS_SHOWN], part["operators"][OPERATORS_SHOWN:]
    if rest:
        sums = {key: sum(row.get(key, 0) for row in rest) for key in ("count", "ms", "share")}
        shown = [*shown, {"operator": f"{len(rest)} others", "kind": "", **sums}]
    for row in shown:
        times = (f"{row['ms']:.3f}", f"{row['share']:.1%}") if timed else ()
        table.add_row(f"  {row['operator']}", row["kind"], str(row["count"]), *times)
    return table


def finding_title(finding: dict[str, Any]) -> str:
    """Cause, number of nodes, and the share of the time that it is estimated to cost."""
    share = ""
    if finding["share"] is not None:
        about = f"about {finding['share']:.0%}" if finding["share"] >= NEGLIGIBLE else "under 1%"
        share = f", {about} of the time"
    if finding["counted_in"]:
        share = f", {finding['time_share']:.0%} of the time" if finding["time_share"] is not None else ""
        share += f"; {sum(finding['counted_in'].values())} count under {', '.join(finding['counted_in'])}"
    return f"{finding['title']} [{finding['cause']}]: {_nodes(finding['nodes'])}{share}"


def finding_lines(finding: dict[str, Any]) -> Iterator[str]:
    """The reasons with their counts, some nodes, the explanation and the next step."""
    for reason, count in list(finding["reasons"].items())[:4]:
        yield f"{count}x {reason}" if reason else _nodes(count)
    more = ", ..." if finding["nodes"] > len(finding["names"]) else ""
    yield f"nodes: {', '.join(finding['names'])}{more}"
    yield f"why:   {finding['why']}"
    yield f"next:  {finding['remedy']}"


def _nodes(count: int) -> str:
    return f"{count} node{'s'[: count > 1]}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
