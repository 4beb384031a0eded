"""The parent's end of a latency worker: starts it, asks it, and reports its death."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from vlm_edge.errors import VlmEdgeError

COMMAND = (sys.executable, "-P", "-m", "vlm_edge.evaluation.latency_worker")
_STDERR_LINES = 8


class WorkerProcess:
    """One worker in its own process; a context manager that leaves no process behind.

    ``name`` is what messages call it: ``baseline engine /path``. ``timeout_s`` bounds every single request.
    ``environment`` is set on top of this process's own.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout_s: float,
        command: tuple[str, ...] = COMMAND,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._asked = ""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C is the parent's to handle: it ends the worker itself
        )
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in filter(None, (self._process.stdin, self._process.stdout)):
            with suppress(BrokenPipeError):  # its other end may be gone
                stream.close()
        self._stderr.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its reply; errors as :meth:`reply`."""
        self.send(**request)
        return self.reply()

    def send(self, **request: Any) -> None:
        """Send one request, whose :meth:`reply` is to be read before the next one is sent."""
        assert self._process.stdin is not None
        self._asked = request["do"]
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error

    def reply(self) -> dict[str, Any]:
        """Wait for the reply to the request that was sent.

        Raises:
            VlmEdgeError: the worker replied an error, ended, took longer than the timeout, or answered no JSON.
        """
        try:
            line = self._replies.get(timeout=self._timeout_s)
        except queue.Empty as error:
            raise VlmEdgeError(
                f"latency: {self._name}: no reply to {self._asked!r} in {self._timeout_s:g} s{self._last_words()}",
                "give the measurement a longer timeout, or a smaller model",
            ) from error
        if line is None:
            raise self._died()
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise VlmEdgeError(f"latency: {self._name}: the worker answered {line[:200]!r}") from error
        if "error" in reply:
            raise VlmEdgeError(f"latency: {self._name}: {reply['error']}", reply.get("hint"))
        return reply

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(None)

    def _died(self) -> VlmEdgeError:
        status = self._process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        hint = "out of memory? see `dmesg`; else run it alone with `vlm-edge bench`"
        return VlmEdgeError(f"latency: {self._name}: its process {how}{self._last_words()}", hint)

    def _last_words(self) -> str:
        """The last lines that the worker wrote to stderr."""
        descriptor = self._stderr.fileno()
        content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)  # a seek would move the worker's own place
        lines = content.decode("utf-8", "replace").strip().splitlines()[-_STDERR_LINES:]
        return "; its last words:\n" + "\n".join(lines) if lines else " without a word"
