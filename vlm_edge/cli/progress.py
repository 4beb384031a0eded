"""Progress on stderr: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
    def bar(self, label: str, total: float | None) -> Iterator[_Ticker]:
        label = terminal(label)
        task = self._display.add_task(label, total=total, count=_count(0, total), note="")

        def show(steps: float) -> None:
            self._display.update(task, advance=steps, count=ticker.count, note=ticker.note)

        ticker = _Ticker(label, total, show)
        try:
            yield ticker
        finally:
            self._display.remove_task(task)
        if ticker.elapsed >= WORTH_A_LINE_S:
            self._console.print(ticker.ended, markup=False)

    def remark(self, line: str) -> None:
        self._console.print(terminal(line), soft_wrap=True, markup=False)


class _Ticker:
    """Counts the steps of a bar and keeps its latest note; ``show`` draws each advance by some steps."""

    def __init__(self, label: str, total: float | None, show: Callable[[float], None]) -> None:
        self.label, self.note = label, ""
        self._total, self._show = total, show
        self._started, self._done = time.monotonic(), 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    @property
    def count(self) -> str:
        return _count(self._done, self._total)

    @property
    def ended(self) -> str:
        """The line that a bar leaves behind."""
        return f"{self.label}: {self.elapsed:,.1f} s{f', {self.note}' if self.note else ''}"

    def advance(self, steps: float = 1.0, *, note: str | None = None) -> None:
        self._done += steps
        self.note = terminal(note) if note is not None else self.note
        self._show(steps)


class PlainProgress:
    """Lines for a log: a step of more than two seconds is named, reported every ten seconds, then closed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._unopened: list[_Ticker] = []
        self._lock = threading.Lock()

    @contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[_Ticker]:
        printed = time.monotonic()

        def show(_steps: float) -> None:
            nonlocal printed
            if time.monotonic() - printed >= BETWEEN_LINES_S:
                printed = time.monotonic()
                parts = [part for part in (ticker.count, f"{ticker.elapsed:.0f} s", ticker.note) if part]
                self._say(f"{ticker.label}: {', '.join(parts)}")

        ticker = _Ticker(terminal(label), total, show)
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
            self._say(ticker.ended)

    def remark(self, line: str) -> None:
        self._say(terminal(line))

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)

    def _open(self, ticker: _Ticker) -> None:
        """Name a bar, and before it the ones around it that are not named yet."""
        with self._lock:
            while ticker in self._unopened:
                self._say(f"{self._unopened.pop(0).label} ...")


def _count(done: float, total: float | None) -> str:
    """``120/1,000``; ``7.5/25`` where the steps are no whole numbers."""
    text = f"{done:,.0f}" if done == int(done) else f"{done:,.1f}"
    return f"{text}/{total:,g}" if total else text if done else ""
