from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vlm_edge.cli.boundary import error_boundary
from vlm_edge.cli.main import main
from vlm_edge.cli.settings import Settings
from vlm_edge.errors import RecipeError, VlmEdgeError


def ended_by(action: Callable[[], object], *, debug: bool = False) -> Result:
    """What a command that does this ends with."""

    @click.command()
    @click.pass_context
    def command(ctx: click.Context) -> None:
        ctx.obj = Settings(store=Path("store"), runs=Path("runs"), debug=debug)
        with error_boundary(ctx):
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


SECRETS = (
    "hf_abcdefghijklmnop",
    "https://me:hunter22@hub.example/x",
    "Authorization: Bearer s3cr3t-words",
    "?token=t0ps3cret&x=1",
)


def test_something_unforeseen_is_one_line_and_a_log_for_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("MY_HUB_TOKEN", "correct-horse-battery")
    monkeypatch.setattr(sys, "argv", ["vlm-edge", "run", "r.yaml", *SECRETS, "correct-horse-battery"])
    result = ended_by(raising(ZeroDivisionError("by zero\nsecond line \udcff")))
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error == "error: ZeroDivisionError: by zero"
    assert "this is a fault in vlm-edge" in hint
    saved = Path(re.search(r"attach (\S+) to a report", hint)[1])  # type: ignore[index]
    assert saved.parent == tmp_path / "vlm-edge" / "faults"
    text = saved.read_text()
    assert "Traceback (most recent call last)" in text
    assert "ZeroDivisionError: by zero" in text
    assert "vlm-edge " in text
    assert "numpy " in text
    assert "arguments: ['run', 'r.yaml'" in text
    for secret in ("hf_abcdefghijklmnop", "hunter22", "s3cr3t-words", "t0ps3cret", "correct-horse-battery"):
        assert secret not in text


def test_a_log_that_can_not_be_kept_is_no_second_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for name in ("XDG_STATE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file" / "tmp"))
    result = ended_by(raising(ZeroDivisionError("by zero")))
    assert result.exit_code == 1
    assert "run the command with --debug" in result.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x.onnx"), "/data/x.onnx: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", b"/ro/x"), "/ro/x: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission denied"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: a part of this path is a file"),
        (FileExistsError(errno.EEXIST, "File exists", "a"), "a: a file is where a folder has to be"),
        (OSError(errno.EMFILE, "Too many open files", "x"), "x: Too many open files"),
        (RuntimeError("SerializationError: I/O error: No space left on device (os error 28)"), "I/O error: No space"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "No space left on device: 'b'"),
        (MemoryError(), "out of memory"),
    ],
    ids=str,
)
def test_a_fault_of_the_environment_is_not_called_ours(error: Exception, words: str) -> None:
    result = ended_by(raising(error))
    assert result.exit_code == 1
    assert words in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1].startswith("hint: ")
    assert "fault in vlm-edge" not in result.stderr
    assert "Errno" not in result.stderr.splitlines()[0] or isinstance(error, shutil.Error)


def vlm_edge(*arguments: str, file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, whose files may hold so many bytes."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    command = [sys.executable, "-m", "vlm_edge.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)


RECORD = str(Path(__file__).parents[1] / "report" / "run.json")


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        ("report", RECORD, "--html", "-o"),
        ("report", RECORD, "--json", "-o"),
        ("gate", RECORD, "--junit"),
        ("init", "zoo:blip-easyvqa", "-o"),
        ("zoo", "create", "clip", "--size", "tiny", "-o"),
        ("export", "zoo:blip-easyvqa", "-o"),
        ("report",),
        ("check",),
        ("plan",),
        ("gc", "--store"),
        ("answer",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_place_below_a_file_and_a_name_too_long_are_no_fault_of_ours(
    tmp_path: Path, arguments: tuple[str, ...], long: bool
) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / ("n" * 300) if long else tmp_path / "file" / "x"
    if arguments[-1] == "--store":
        arguments = ("--store", str(place), "gc")
        result = CliRunner().invoke(main, arguments)
    else:
        result = CliRunner().invoke(main, [*arguments, str(place)])
    assert result.exit_code in (1, 2), result.output
    assert "fault in vlm-edge" not in result.stderr
    assert (tmp_path / "file").read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_may_grow_no_further_is_named_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    done = vlm_edge("report", RECORD, "--html", "-o", str(tmp_path / "page.html"), file_bytes=1000)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"error: {tmp_path / 'page.html'}: can't be written: File too large"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems can't be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_and_a_read_only_disk(small_disk: Path) -> None:
    done = vlm_edge("report", RECORD, "--html", "-o", str(small_disk / "page.html"))
    assert done.returncode == 0
    done = vlm_edge("zoo", "create", "clip", "--size", "tiny", "-o", str(small_disk / "model"))
    assert (done.returncode, "fault in vlm-edge" in done.stderr) == (1, False), done.stderr
    assert "No space left on device" in done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["page.html"]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for arguments in (
        ("report", RECORD, "--html", "-o", str(small_disk / "page.html")),
        ("--store", str(small_disk / "store"), "plan", "recipes/quickstart.yaml"),
        ("init", "zoo:blip-easyvqa", "-o", str(small_disk / "recipe.yaml")),
    ):
        done = vlm_edge(*arguments)
        assert (done.returncode, "fault in vlm-edge" in done.stderr) == (1, False), done.stderr
        assert f"{small_disk}" in done.stderr
        assert "Read-only file system" in done.stderr


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
