from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vlm_edge.cli.edge import edge
from vlm_edge.cli.settings import Settings
from vlm_edge.errors import RecipeError, VlmEdgeError


def ended_by(action: Callable[[], object], *, debug: bool = False) -> Result:
    """What a command that does this ends with."""

    @click.command()
    @click.pass_context
    def command(ctx: click.Context) -> None:
        ctx.obj = Settings(store=Path("store"), runs=Path("runs"), debug=debug)
        with edge(ctx):
            action()

    return CliRunner().invoke(command)


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


def test_a_user_s_mistake_gets_message_and_hint_and_no_traceback() -> None:
    result = ended_by(raising(VlmEdgeError("model: here: no such folder", "give another")))
    assert result.exit_code == 1
    assert result.stderr == "error: model: here: no such folder\nhint: give another\n"
    assert result.stdout == ""


def test_every_fault_of_a_recipe_is_an_error_of_its_own_and_the_code_is_usage() -> None:
    faults = [f"r.yaml: stages[{i}]: wrong" for i in range(5)]
    result = ended_by(raising(RecipeError(faults, "mend it")))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [*(f"error: {fault}" for fault in faults), "hint: mend it"]


def test_something_unforeseen_is_one_line_and_a_saved_traceback() -> None:
    result = ended_by(raising(ZeroDivisionError("by zero\nsecond line")))
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error == "error: ZeroDivisionError: by zero"
    saved = Path(re.search(r"the traceback is in (.*)$", hint)[1])  # type: ignore[index]
    text = saved.read_text()
    saved.unlink()
    assert "Traceback (most recent call last)" in text
    assert "ZeroDivisionError: by zero" in text
    assert "vlm-edge" in text


@pytest.mark.parametrize(
    ("module", "extra"), [("torch.nn", "compress"), ("easy_vqa", "demo"), ("openvino", "openvino")]
)
def test_a_missing_extra_is_named(module: str, extra: str) -> None:
    result = ended_by(raising(ModuleNotFoundError(f"No module named {module!r}", name=module)))
    assert result.exit_code == 1
    assert (
        result.stderr == f"error: this needs {module}, which is not installed\nhint: pip install 'vlm-edge[{extra}]'\n"
    )


@pytest.mark.parametrize("error", [VlmEdgeError("known"), ZeroDivisionError("unknown")])
def test_debug_raises_it_as_it_is(error: Exception) -> None:
    assert ended_by(raising(error), debug=True).exception is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_says_that_running_again_goes_on(error: BaseException) -> None:
    result = ended_by(raising(error))
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr


def test_exit_codes_of_a_command_pass_through() -> None:
    assert ended_by(raising(click.exceptions.Exit(3))).exit_code == 3
    assert ended_by(raising(click.UsageError("no"))).exit_code == 2
    assert ended_by(lambda: None).exit_code == 0


def test_a_reader_that_went_away_is_no_success_and_no_traceback() -> None:
    record = Path(__file__).parents[1] / "report" / "run.json"
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vlm_edge.cli", "report", str(record), "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
