from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from vlm_edge.cli.main import COMMANDS, LazyGroup, main

NAMES = [name for section in COMMANDS.values() for name in section]
PROMISED = {
    *("init", "run", "plan", "check", "report", "ls", "gc", "doctor", "zoo"),
    *("export", "quantize", "prune", "distill", "compile", "evaluate", "bench"),
}
NOT_FOR_HELP = ("torch", "onnx", "onnxruntime", "transformers", "numpy", "pydantic", "rich", "yaml")


def test_every_command_that_is_promised_is_there() -> None:
    assert set(NAMES) >= PROMISED
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_a_command_bears_its_name_and_explains_itself(name: str) -> None:
    assert isinstance(main, LazyGroup)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert command.help
    assert "…" not in command.help


def test_the_list_of_commands_is_the_table() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for section, commands in COMMANDS.items():
        assert f"{section}:" in result.output
        for name, (_, summary) in commands.items():
            assert f"{name} " in result.output
            assert summary.split()[0] in result.output


def test_help_imports_nothing_but_click() -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from vlm_edge.cli.main import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "print(*sorted(name for name in sys.modules if not name.startswith('_')))\n"
    )
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "vlm_edge.cli.main" in modules
    assert [name for name in NOT_FOR_HELP if name in modules] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_command_module_imports_anything_heavy(name: str) -> None:
    heavy = ("torch", "onnx", "onnxruntime", "transformers", "openvino", "nncf")
    module = next(section[name][0] for section in COMMANDS.values() if name in section)
    script = f"import sys, vlm_edge.cli.{module}; print(*(name for name in {heavy!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_an_unknown_command_lists_near_matches() -> None:
    result = CliRunner().invoke(main, ["quantise"])
    assert result.exit_code == 2
    assert "no such command 'quantise'; did you mean 'quantize'" in result.stderr
    assert result.stdout == ""


def test_an_unknown_option_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["run", "recipe.yaml", "--jsno"])
    assert result.exit_code == 2
    assert "--json" in result.stderr


def test_the_version_is_the_package_s() -> None:
    from vlm_edge import __version__

    assert CliRunner().invoke(main, ["--version"]).stdout == f"vlm-edge, version {__version__}\n"
