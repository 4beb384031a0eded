"""Run ONNX graphs and keep what they give: run by the aarch64 Python, with onnxruntime and numpy alone.

run_graphs.py JOBS    JOBS: a JSON list of {"graph", "feeds" (npz), "outputs" (npz), "level"}
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, job["level"])
        session = ort.InferenceSession(job["graph"], options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        with np.load(job["feeds"]) as feeds:
            np.savez(job["outputs"], **dict(zip(names, session.run(names, dict(feeds)), strict=True)))
    print(platform.machine())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
