"""CPU time of opening a bundle with and without verification, in turns, each in a process of its own.

    python benchmarks/opening.py BUNDLE [ROUNDS]

Prints the time of the first open, which hashes every file, and the median and the range of later ones.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = """
import sys, time, logging
logging.disable()
from vlm_edge.runtime import load_pipeline
import vlm_edge.backends.onnxruntime.engine
began = time.process_time()
load_pipeline(sys.argv[1], verify=sys.argv[2] == "True")
print(time.process_time() - began)
"""


def opened(bundle: Path, cache: str, verify: bool) -> float:
    """CPU seconds of one open in a new process."""
    command = [sys.executable, "-c", SCRIPT, str(bundle), str(verify)]
    done = subprocess.run(
        command, env={**os.environ, "XDG_CACHE_HOME": cache}, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main(bundle: Path, rounds: int) -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory() as cache:
        opened(bundle, cache, False)
        first = opened(bundle, cache, True)
        pairs = [(opened(bundle, cache, True), opened(bundle, cache, False)) for _ in range(rounds)]
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB; first open {1e3 * first:.1f} ms; then, {rounds} rounds:")
    for name, values in zip(("verified", "not verified"), zip(*pairs, strict=True), strict=True):
        middle, low, high = (1e3 * each for each in (statistics.median(values), min(values), max(values)))
        print(f"  {name}: median {middle:.1f} ms [{low:.1f}, {high:.1f}]")
    ratios = [verified / plain for verified, plain in pairs]
    print(f"  ratio: median {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 15)
