"""Decoders with weights in 8 and 4 bits: time of a step and of a prompt, size, memory, and distance from float.

    python benchmarks/weight_only.py [--layers 4] [--json]

The decoder is SmolVLM-256M's, cut to a few layers, with random weights. Times are CPU seconds of sessions of one
thread that take turns in one process (lower quartile); each session's memory is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _language_models import smolvlm_256m

from vlm_edge import api
from vlm_edge.backends import load_engine
from vlm_edge.backends.base import Engine, Feed
from vlm_edge.backends.lowering import lowering_of
from vlm_edge.backends.openvino.compile import write_ir
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.passes.integer_forms import InFloat
from vlm_edge.processing.manifest import Component, read_manifest
from vlm_edge.quantizers.affine import agreement
from vlm_edge.stages.quantize import quantize_graph

ROWS = {"step": 1, "prompt of 16": 16, "prompt of 64": 64, "prompt of 256": 256}
PAST = 128
"""Tokens in a step's cache."""
SECONDS = 8.0
"""Of each comparison."""


def graphs_of(folder: Path, layers: int) -> tuple[dict[str, tuple[str, Path]], Component]:
    """Name -> engine and file, and the manifest's row of all."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    smolvlm_256m(checkpoint, tower_layers=1, text_layers=layers)
    api.run_stage("export", {}, str(checkpoint), folder / "graphs")
    row = read_manifest(folder / "graphs").components["decoder"]
    path = folder / "graphs" / row.file
    floating = load_graph(path)
    ort, openvino = lowering_of("onnxruntime", "x86-vnni"), lowering_of("openvino", "x86-vnni")
    blocks = quantize_graph(load_graph(path), "int8-weights", [], ort)
    in_float = blocks.clone()
    InFloat()(in_float)
    models = {
        "ort float": floating,
        "ort int8-weights in float": in_float,
        "ort int8-weights": blocks,
        "ort int8-dynamic": quantize_graph(load_graph(path), "int8-dynamic", [], ort),
        "ort int4-weights": quantize_graph(load_graph(path), "int4-weights", [], ort),
        "openvino float": floating,
        "openvino int8-weights": quantize_graph(load_graph(path), "int8-weights", [], openvino),
        "openvino int4-weights": quantize_graph(load_graph(path), "int4-weights", [], openvino),
    }
    found = {}
    for name, model in models.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        save_graph(model, path)
        engine = "openvino" if name.startswith("openvino") else "onnxruntime"
        if engine == "openvino":
            write_ir(path, path.with_suffix(".xml"))
            path = path.with_suffix(".xml")
        found[name] = engine, path
    return found, row


def feed_of(component: Component, rows: int) -> Feed:
    """A step after :data:`PAST` tokens, or a prompt without a past."""
    generator = np.random.default_rng(rows)
    past = PAST if rows == 1 else 0
    sizes = {"batch": 1, "new": rows, "past": past, "past + new": past + rows, "image_tokens": 0}
    feed: dict[str, Any] = {}
    for name, spec in component.inputs.items():
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        feed[name] = generator.normal(0, 0.5, shape).astype(np.float32) if spec.dtype == "float32" else None
    feed["input_ids"] = generator.integers(0, 250, (1, rows))
    feed["attention_mask"] = np.ones((1, past + rows), np.int64)
    feed["position_ids"] = np.arange(past, past + rows)[None]
    return feed


def cpu_seconds(engines: dict[str, Engine], feed: Feed) -> dict[str, float]:
    """The lower quartile of each engine's CPU seconds, in turns."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS or len(next(iter(times.values()))) < 6:
        for name, engine in engines.items():
            start = time.process_time()
            engine.infer(feed)
            times[name].append(time.process_time() - start)
    return {name: float(np.percentile(own[1:], 25)) for name, own in times.items()}


def memory_mb(engine: str, path: Path, component: Component) -> float:
    """Resident memory of a process that has loaded the graph and run one step, MB."""
    (path.parent / "component.json").write_text(component.model_dump_json())
    command = [sys.executable, __file__, "--memory", engine, str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(engine: str, path: Path) -> None:
    component = Component.model_validate_json((path.parent / "component.json").read_text())
    load_engine(engine, path, component, 1).infer(feed_of(component, 1))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(next(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmRSS")))


def measured(folder: Path, layers: int) -> list[dict[str, Any]]:
    """One row a graph; speed-ups over onnxruntime's float graph."""
    paths, component = graphs_of(folder, layers)
    engines = {name: load_engine(engine, path, component, 1) for name, (engine, path) in paths.items()}
    feeds = {name: feed_of(component, rows) for name, rows in ROWS.items()}
    times = {name: cpu_seconds(engines, feed) for name, feed in feeds.items()}
    rows = []
    for name, (kind, path) in paths.items():
        pairs = ((engines["ort float"].infer(feed), engines[name].infer(feed)) for feed in feeds.values())
        logits = agreement(pairs)["logits"]
        rows.append(
            {
                "name": name,
                "size_mb": round(sum(each.stat().st_size for each in path.parent.glob(f"{path.stem}.*")) / 1e6, 1)
                if kind == "onnxruntime"
                else round(path.with_suffix(".bin").stat().st_size / 1e6, 1),
                "memory_mb": round(memory_mb(kind, path, component)),
                "logits_cosine": round(logits.cosine, 5),
                "logits_sqnr_db": round(logits.sqnr_db, 1),
                "ms": {what: round(1e3 * found[name], 2) for what, found in times.items()},
                "speedup": {what: round(found["ort float"] / found[name], 2) for what, found in times.items()},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", nargs=2, metavar=("ENGINE", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_memory(arguments.memory[0], Path(arguments.memory[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), arguments.layers)
    if arguments.json:
        print(json.dumps({"layers": arguments.layers, "rows": rows}, indent=1))
        return
    for row in rows:
        shown = "  ".join(f"{what} {row['ms'][what]} ms ({row['speedup'][what]}x)" for what in ROWS)
        size = f"{row['size_mb']:7} MB on disk  {row['memory_mb']:5} MB in memory"
        print(f"{row['name']:28} {size}  {row['logits_cosine']}  {shown}")


if __name__ == "__main__":
    main()
