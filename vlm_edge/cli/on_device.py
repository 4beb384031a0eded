"""``vlm-edge compile KIT --on-device``: build a kit's engine on the device, check, measure and judge it."""

from __future__ import annotations

from pathlib import Path

import click

from vlm_edge.cli.ci import EXIT_CODES
from vlm_edge.cli.settings import Settings, print_json

ON_DEVICE = [
    click.Option(
        ["--on-device"],
        is_flag=True,
        help="SOURCE is a build kit, or a run's folder with one: build its engine here, hold it to the kit's golden "
        "runs, measure and judge it. OUT becomes a run's folder; the exit code is the verdict, as of `vlm-edge run`.",
    ),
    click.Option(
        ["--data"],
        type=click.Path(path_type=Path),
        help="With --on-device: also measure the accuracy on this task's data.",
    ),
]


def build_kit(settings: Settings, source: Path, out: Path, data: Path | None, *, as_json: bool) -> None:
    """Build, print the record and exit with its verdict."""
    from vlm_edge.api import find_task
    from vlm_edge.cli.recipe import print_summary
    from vlm_edge.evaluation.on_device import DeviceSettings, compile_on_device

    with settings.working() as progress:
        task = find_task(data) if data is not None else None
        record = compile_on_device(source, out, DeviceSettings(task), progress)
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        print_summary(record, out)
    click.get_current_context().exit(EXIT_CODES[record.verdict])
