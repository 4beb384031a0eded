from __future__ import annotations

import io

import pytest
from rich.console import Console

from vlm_edge.cli import progress
from vlm_edge.cli.progress import PlainProgress, RichProgress


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_what_is_quick_leaves_no_line() -> None:
    console = Console(file=io.StringIO(), width=80)
    with PlainProgress(console).bar("export", 3) as bar:
        bar.advance()
    assert lines_of(console) == []


def test_what_takes_long_is_reported_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WORTH_A_LINE_S", 0.0)
    monkeypatch.setattr(progress, "BETWEEN_LINES_S", 0.0)
    console = Console(file=io.StringIO(), width=80)
    with PlainProgress(console).bar("distill [1/2]", 10) as bar:
        bar.advance(4, note="loss 0.31")
    lines = lines_of(console)
    assert "distill [1/2]: 4/10, 0 s, loss 0.31" in lines
    assert lines[-1] == "distill [1/2]: 0.0 s, loss 0.31"


def test_the_outer_bar_is_named_before_the_inner_one() -> None:
    console = Console(file=io.StringIO(), width=80)
    progress = PlainProgress(console)
    with progress.bar("variant", None), progress.bar("export", None) as inner:
        progress._open(inner)
        progress._open(inner)
    assert lines_of(console) == ["variant ...", "export ..."]


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(120.0, 1000, "120/1,000"), (7.52, 25, "7.5/25"), (0, None, ""), (3, None, "3"), (0, 2.5, "0/2.5")],
)
def test_counts_are_written_plainly(done: float, total: float | None, text: str) -> None:
    assert progress._count(done, total) == text


def test_what_fails_is_not_reported_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WORTH_A_LINE_S", 0.0)
    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(RuntimeError), PlainProgress(console).bar("prune", None):
        raise RuntimeError
    assert not any(line.endswith("s") for line in lines_of(console))


def test_bars_on_a_terminal_are_nested_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WORTH_A_LINE_S", 0.0)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with (
        RichProgress(console) as bars,
        bars.bar("variant 2 of 5", None),
        bars.bar("quantize [int8]", 10) as bar,
    ):
        bar.advance(7, note="text_encoder")
        bars._display.refresh()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "7/10" in text
    assert "quantize [int8]: 0.0 s, text_encoder" in text
    assert "variant 2 of 5: 0.0 s" in text
