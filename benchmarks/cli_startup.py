"""CPU time of the command line's own start: ``vlm-edge --help``, each command's help, ``report`` and ``ls``.

    python benchmarks/cli_startup.py

User and system time of the whole process, the interpreter's start included: median and range of 9 runs, in ms.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RUNS = 9
RECORD = Path(__file__).parents[1] / "tests" / "report" / "run.json"
CASES: dict[str, list[str]] = {
    "python -c pass": ["-c", "pass"],
    "vlm-edge --help": ["-m", "vlm_edge.cli", "--help"],
    "vlm-edge run --help": ["-m", "vlm_edge.cli", "run", "--help"],
    "vlm-edge report RUN": ["-m", "vlm_edge.cli", "report", str(RECORD)],
    "vlm-edge ls": ["-m", "vlm_edge.cli", "ls"],
}


def cpu_ms(arguments: Sequence[str]) -> float:
    """User and system time of one run of the interpreter, in ms."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def main() -> None:
    print(f"{'case':<28} {'median ms':>9}   range, n {RUNS}")
    for name, arguments in CASES.items():
        times = sorted(cpu_ms(arguments) for _ in range(RUNS))
        print(f"{name:<28} {statistics.median(times):>9.0f}   [{times[0]:.0f}, {times[-1]:.0f}]")


if __name__ == "__main__":
    main()
