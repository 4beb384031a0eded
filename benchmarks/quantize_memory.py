"""Peak memory and CPU time of quantizing and compiling SmolVLM-256M with random weights for onnxruntime.

    python benchmarks/quantize_memory.py [--folder FOLDER] [--json]

Int8 vision tower, int4 decoder, 8 calibration samples of easy-VQA, each image one tile. Each step is a command of its
own; peak memory is its maximum resident set, mapped files included, and CPU time is user and system time, which other
work on the machine changes less than the clock. The checkpoint and the graphs are kept under --folder. Bars: at most
half the memory and two thirds of the time that the stages took on 2026-11-30, before graphs were edited in place. Exits
with 1 where one is missed. About 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _language_models import smolvlm_256m

ROOT = Path(__file__).parents[1]
BEFORE = {"quantize": (5044.0, 446.0), "compile": (3095.0, 133.0)}
"""Peak MB and CPU seconds, measured with this script on a host with 2 cores."""
SCHEMES = "components={'*': int8, decoder: int4-weights}"


def step(command: list[str]) -> dict[str, float]:
    """A process to its end: seconds by the clock and of CPU time, and peak resident memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    return {
        "wall_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6),
    }


def measured(folder: Path) -> dict[str, Any]:
    """Both steps, on graphs that are exported where ``folder`` has none."""
    checkpoint, graphs, quantized, compiled = (folder / name for name in ("checkpoint", "graphs", "int", "engine"))
    command = [sys.executable, "-m", "vlm_edge.cli", "-q"]
    if not graphs.is_dir():
        subprocess.run([sys.executable, __file__, "--write", str(checkpoint)], check=True)
        step([*command, "export", str(checkpoint), "-o", str(graphs)])
    for path in (quantized, compiled):
        shutil.rmtree(path, ignore_errors=True)
    data = ["--data", str(ROOT / "calibration" / "easy-vqa.yaml")]
    settings = ["-s", "samples=8", "-s", SCHEMES]
    steps = {
        "quantize": step([*command, "quantize", str(graphs), *data, *settings, "-o", str(quantized)]),
        "compile": step([*command, "compile", str(quantized), "-o", str(compiled)]),
    }
    sizes = {path.name: path.stat().st_size for path in sorted(compiled.glob("*.onnx*"))}
    bars = {
        f"{name}: {what}": steps[name][key] <= before * share
        for name, limits in BEFORE.items()
        for what, key, before, share in (
            ("half the memory", "peak_mb", limits[0], 1 / 2),
            ("two thirds of the time", "cpu_s", limits[1], 2 / 3),
        )
    }
    return {"model": "smolvlm-256m", "steps": steps, "sizes": sizes, "bars": bars}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "vlm-edge-quantize-memory")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        smolvlm_256m(arguments.write)
        path = arguments.write / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"do_image_splitting": False}))
        return 0
    arguments.folder.mkdir(parents=True, exist_ok=True)
    found = measured(arguments.folder)
    if arguments.json:
        print(json.dumps(found))
    else:
        print("| step | peak MB | CPU s | wall s |\n| --- | ---: | ---: | ---: |")
        for name, row in found["steps"].items():
            print(f"| {name} | {row['peak_mb']:.0f} | {row['cpu_s']:.0f} | {row['wall_s']:.0f} |")
        print("\n".join(f"{bar}: {'met' if met else 'missed'}" for bar, met in found["bars"].items()))
    return int(not all(found["bars"].values()))


if __name__ == "__main__":
    sys.exit(main())
