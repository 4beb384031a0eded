"""A worker that dies, hangs or talks nonsense is told as what it was; none is left behind."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.worker_process import COMMAND, WorkerProcess


def python(code):
    return (sys.executable, "-c", code)


def ask(command, *, timeout_s=30.0):
    with WorkerProcess("baseline engine x", timeout_s=timeout_s, command=command) as worker:
        return worker.ask(do="memory")


def test_a_reply_is_one_json_line():
    code = "import json, sys\nfor line in sys.stdin: print(json.dumps({'seen': json.loads(line)}), flush=True)"
    assert ask(python(code)) == {"seen": {"do": "memory"}}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; sys.stderr.write('first\\nno memory\\n'); sys.exit(3)",
            r"ended with status 3; .*\nfirst\nno memory",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL without a word"),
        ("import sys; sys.stdin.readline(); raise ValueError('broken')", "ValueError: broken"),
        ("print('hello', flush=True); import time; time.sleep(60)", "answered 'hello"),
        ("import json; print(json.dumps({'error': 'bad graph', 'hint': 'compile it'}), flush=True)", "bad graph"),
    ],
)
def test_a_worker_that_fails(code, message):
    with pytest.raises(VlmEdgeError, match=rf"(?s)latency: baseline engine x: .*{message}"):
        ask(python(code))


def test_a_worker_that_hangs_is_ended(tmp_path):
    record = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    code = f"import os, pathlib, time; {record}; time.sleep(600)"
    with WorkerProcess("baseline engine x", timeout_s=0.1, command=python(code)) as worker:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        with pytest.raises(VlmEdgeError, match=r"no reply to 'memory' in 0\.1 s"):
            worker.ask(do="memory")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_libraries_print_does_not_reach_the_replies():
    code = (
        "import os\nfrom vlm_edge.evaluation import latency_worker\n"
        "handle = latency_worker.Worker.handle\n"
        "def loud(self, request):\n    print('library says hello'); os.write(1, b'and again')\n"
        "    return handle(self, request)\n"
        "latency_worker.Worker.handle = loud\nlatency_worker.main()"
    )
    assert set(ask(python(code))) == {"peak_rss_mb"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_is_the_workers_own():
    """``ru_maxrss`` of a new process starts at its parent's peak."""
    held = np.ones(512 * 2**20, np.uint8)
    peak = ask(COMMAND)["peak_rss_mb"]
    assert held[-1] == 1
    assert 5 < peak < 400


def test_a_worker_ends_when_its_parent_is_gone():
    import subprocess

    done = subprocess.run(
        COMMAND, input=json.dumps({"do": "memory"}) + "\n", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert set(json.loads(done.stdout)) == {"peak_rss_mb"}
