"""Progress on stderr: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vlm_edge.report.escape import terminal

WORTH_A_LINE_S = 2.0
BETWEEN_LINES_S = 10.0


class RichProgress:
    """Live bars; one that took longer than two seconds leaves a line behind."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            transient=True,
        )

    def __enter__(self) -> RichProgress:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    @contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[_RichTicker]:
        started, label = time.monotonic(), terminal(label)
        task = self._display.add_task(label, total=total, count=_count(0, total), note="")
        ticker = _RichTicker(self._display, task, total)
        try:
            yield ticker
        finally:
            self._display.remove_task(task)
        took = time.monotonic() - started
        if took >= WORTH_A_LINE_S:
            self._console.print(_done(label, took, ticker.note), markup=False)

    def remark(self, line: str) -> None:
        self._console.print(terminal(line), soft_wrap=True, markup=False)


class _RichTicker:
    def __init__(self, display: Progress, task: TaskID, total: float | None) -> None:
        self._display, self._task, self._total = display, task, total
        self._done = 0.0
        self.note = ""

    def advance(self, steps: float = 1.0, *, note: str | None = None) -> None:
        self._done += steps
        self.note = terminal(note) if note is not None else self.note
        self._display.update(self._task, advance=steps, count=_count(self._done, self._total), note=self.note)


class PlainProgress:
    """Lines for a log: a step of more than two seconds is named, reported every ten seconds, then closed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._unopened: list[_PlainTicker] = []
        self._lock = threading.Lock()

    @contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[_PlainTicker]:
        label = terminal(label)
        ticker = _PlainTicker(self._console, label, total)
        with self._lock:
            self._unopened.append(ticker)
        opening = threading.Timer(WORTH_A_LINE_S, self._open, (ticker,))
        opening.daemon = True
        opening.start()
        try:
            yield ticker
        finally:
            opening.cancel()
            with self._lock:
                if ticker in self._unopened:
                    self._unopened.remove(ticker)
        if ticker.elapsed >= WORTH_A_LINE_S:
            ticker.say(_done(label, ticker.elapsed, ticker.note))

    def remark(self, line: str) -> None:
        self._console.print(terminal(line), soft_wrap=True, markup=False)

    def _open(self, ticker: _PlainTicker) -> None:
        """Name a bar, and before it the ones around it that are not named yet."""
        with self._lock:
            while ticker in self._unopened:
                outer = self._unopened.pop(0)
                outer.say(f"{outer.label} ...")


class _PlainTicker:
    def __init__(self, console: Console, label: str, total: float | None) -> None:
        self.label, self.note = label, ""
        self._console, self._total = console, total
        self._started = self._printed = time.monotonic()
        self._done = 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)

    def advance(self, steps: float = 1.0, *, note: str | None = None) -> None:
        self._done += steps
        self.note = terminal(note) if note is not None else self.note
        now = time.monotonic()
        if now - self._printed >= BETWEEN_LINES_S:
            self._printed = now
            parts = [part for part in (_count(self._done, self._total), f"{self.elapsed:.0f} s", self.note) if part]
            self.say(f"{self.label}: {', '.join(parts)}")


def _count(done: float, total: float | None) -> str:
    """``120/1,000``; ``7.5/25`` where the steps are no whole numbers."""
    text = f"{done:,.0f}" if done == int(done) else f"{done:,.1f}"
    return f"{text}/{total:,g}" if total else text if done else ""


def _done(label: str, seconds: float, note: str) -> str:
    return f"{label}: {seconds:,.1f} s{f', {note}' if note else ''}"
