"""INT8 on the CPU, side by side: vlm-edge, onnxruntime's quantize_static and quantize_dynamic, NNCF's graph as it is.

    python benchmarks/int8_cpu.py [--model zoo:blip-easyvqa] [--data calibration/easy-vqa.yaml] [--json]

Every component of the model is quantized by each tool from the same calibration inputs, and all run on onnxruntime on
one true input at batch 1, each in a process of its own, in short blocks that take turns. Speed-ups are against the FP32
graph: the ratio of medians with its 95% interval over the blocks. Cosines are over all outputs on held-out inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_SECONDS = 0.1
TOOLS = ("onnxruntime FP32", "vlm-edge int8", "vlm-edge int8-dynamic", "quantize_static", "quantize_dynamic", "NNCF")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:blip-easyvqa", help="zoo name, checkpoint folder or exported folder")
    parser.add_argument("--data", type=Path, help="data set manifest (default: easy-VQA for the model's kind)")
    parser.add_argument("--component", action="append", help="only this component (may be repeated)")
    parser.add_argument("--samples", type=int, default=64, help="calibration samples")
    parser.add_argument("--rounds", type=int, default=20, help="blocks of each engine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--worker", nargs=3, metavar=("GRAPH", "FEED", "THREADS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(arguments, Path(folder))
    if arguments.json:
        print(json.dumps({"model": arguments.model, "host": host(arguments.threads), "rows": rows}, indent=1))
    else:
        print_table(rows)


def compare(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row for each component and tool."""
    from vlm_edge.core.stage import SilentProgress
    from vlm_edge.data import load_dataset
    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.stages.quantize_capture import capture_inputs

    graphs = exported(arguments.model, folder / "graphs")
    manifest = read_manifest(graphs)
    shipped = {"vqa": "easy-vqa.yaml", "dual_encoder": "easy-vqa-zero-shot.yaml"}[manifest.pipeline]
    data = arguments.data or Path(__file__).parents[1] / "calibration" / shipped
    dataset = load_dataset(data, "calibration", limit=arguments.samples)
    capture = capture_inputs(graphs, manifest, dataset, folder / "inputs", arguments.threads, SilentProgress())
    rows: list[dict[str, Any]] = []
    for name in arguments.component or manifest.components:
        component, captured = manifest.components[name], capture.components[name]
        feed = folder / f"{name}.npz"
        np.savez(feed, **next(iter(captured.held_out)))
        files = quantized_by_every_tool(graphs / component.file, folder / name, captured.calibration)
        print(f"{name}: timing {len(files)} engines", file=sys.stderr)
        times = alternate({tool: path for tool, path in files.items() if path}, feed, arguments)
        rows += [row_of(name, tool, path, times, captured) for tool, path in files.items()]
    return rows


def exported(model: str, folder: Path) -> Path:
    """The exported folder that ``model`` is, or the one made of the checkpoint that it names."""
    from vlm_edge.core.artifact import checkpoint_artifact
    from vlm_edge.core.stage import StageInputs, StageWork
    from vlm_edge.families.sources import resolve_model
    from vlm_edge.stages.export import SPEC

    if (Path(model) / "manifest.json").is_file():
        return Path(model)
    folder.mkdir()
    work = StageWork(out=folder, scratch=folder.with_name("export"))
    work.scratch.mkdir()
    SPEC.run(SPEC.config(), StageInputs(checkpoint_artifact(resolve_model(model))), work)
    return folder


def quantized_by_every_tool(graph: Path, folder: Path, feeds: Any) -> dict[str, Path | None]:
    """A file by tool; None where the tool failed, with the reason on stderr."""
    folder.mkdir()
    makers: dict[str, Callable[[Path, Path, Any], None]] = {
        "onnxruntime FP32": lambda source, target, _: target.write_bytes(source.read_bytes()) and None,
        "vlm-edge int8": by_vlm_edge("int8"),
        "vlm-edge int8-dynamic": by_vlm_edge("int8-dynamic"),
        "quantize_static": by_quantize_static,
        "quantize_dynamic": by_quantize_dynamic,
        "NNCF": by_nncf,
    }
    files: dict[str, Path | None] = {}
    for tool in TOOLS:
        path = folder / f"{tool.replace(' ', '-')}.onnx"
        try:
            with quiet():
                makers[tool](graph, path, feeds)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # what these tools end in
            print(f"{tool} failed on {graph.name}: {error}", file=sys.stderr)
        files[tool] = path if path.is_file() else None
    return files


def by_vlm_edge(scheme: str) -> Callable[[Path, Path, Any], None]:
    def make(source: Path, target: Path, feeds: Any) -> None:
        import onnx

        from vlm_edge.numerics.quant_forms import host_isa, quant_form
        from vlm_edge.stages.quantize import quantize_graph

        graph = quantize_graph(onnx.load(source), scheme, feeds, quant_form("onnxruntime", host_isa()))
        target.write_bytes(graph.SerializeToString(deterministic=True))

    return make


def by_quantize_static(source: Path, target: Path, feeds: Any) -> None:
    """As onnxruntime's documentation advises for x86 with VNNI: Q/DQ, u8 data, s8 weights by channel."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    prepared = target.with_suffix(".prepared")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def by_quantize_dynamic(source: Path, target: Path, _: Any) -> None:
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    prepared = target.with_suffix(".prepared")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True)


def by_nncf(source: Path, target: Path, feeds: Any) -> None:
    """nncf.quantize for a transformer, with its defaults."""
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import onnx

    nncf.set_log_level(logging.ERROR)
    model = nncf.quantize(
        onnx.load(source), nncf.Dataset(feeds), subset_size=len(feeds), model_type=nncf.ModelType.TRANSFORMER
    )
    onnx.save(model, target)


def row_of(
    name: str, tool: str, path: Path | None, times: dict[str, list[list[float]]], captured: Any
) -> dict[str, Any]:
    from vlm_edge.numerics.statistics import percentile, percentile_ratio_interval

    if path is None or tool not in times:
        return {"component": name, "tool": tool, "failed": True}
    mine, baseline = times[tool], times[TOOLS[0]]
    pooled, pooled_baseline = np.concatenate(mine), np.concatenate(baseline)
    interval = percentile_ratio_interval(baseline, mine, 0.5, seed=0)
    return {
        "component": name,
        "tool": tool,
        "size_bytes": path.stat().st_size,
        "p50_ms": percentile(pooled, 0.5),
        "p90_ms": percentile(pooled, 0.9),
        "speedup": percentile(pooled_baseline, 0.5) / percentile(pooled, 0.5),
        "speedup_low": interval.low,
        "speedup_high": interval.high,
        "n": len(pooled),
        "cosine": worst_cosine(path, captured),
    }


def worst_cosine(path: Path, captured: Any) -> float:
    """The smallest cosine of an output with the FP32 graph's, over all held-out inputs."""
    from vlm_edge.numerics.quantization import agreement

    loaded = session(path, 1)
    names = [output.name for output in loaded.get_outputs()]
    runs = zip(captured.held_out, captured.references, strict=True)
    totals = agreement((reference, dict(zip(names, loaded.run(names, feed), strict=True))) for feed, reference in runs)
    return min(total.cosine for total in totals.values())


def alternate(files: dict[str, Path], feed: Path, arguments: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Times in ms by tool, block by block; an engine that does not load is left out and named on stderr."""
    with contextlib.ExitStack() as stack:
        workers: dict[str, subprocess.Popen[str]] = {}
        for tool, path in files.items():
            command = [sys.executable, __file__, "--worker", str(path), str(feed), str(arguments.threads)]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            if ask(process, "warm up") is None:
                print(f"{tool}: onnxruntime can't run it", file=sys.stderr)
            else:
                workers[tool] = process
        times: dict[str, list[list[float]]] = {tool: [] for tool in workers}
        for _ in range(arguments.rounds):
            for tool, process in workers.items():
                times[tool].append(ask(process, "block") or [])
        for process in workers.values():
            process.communicate()
    return times


def ask(process: subprocess.Popen[str], request: str) -> list[float] | None:
    """A worker's answer, or None where it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(request, file=process.stdin, flush=True)
    except BrokenPipeError:
        return None
    line = process.stdout.readline()
    return json.loads(line) if line else None


def worker(graph: str, feed: str, threads: str) -> None:
    """Answer every line on stdin with the times in ms of one block of runs."""
    loaded = session(Path(graph), int(threads))
    values = dict(np.load(feed))
    for _ in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + BLOCK_SECONDS
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            loaded.run(None, values)
            times.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(times), flush=True)


def session(path: Path, threads: int) -> Any:
    """As vlm-edge's engine runs a graph: all of onnxruntime's optimizations, no spinning between runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def host(threads: int) -> dict[str, Any]:
    from vlm_edge.evaluation.host import host_record

    packages = {name: version(name) for name in ("onnxruntime", "nncf", "onnx")}
    return {**host_record(), "threads": threads, "python": platform.python_version(), "quantizers": packages}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The tools' progress bars and advice go nowhere; their errors are raised."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger().setLevel(level)


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'component':<15} {'tool':<22} {'MB':>7} {'p50 ms':>8} {'speed-up':>9}   95% interval   {'cosine':>9}   n")
    for row in rows:
        start = f"{row['component']:<15} {row['tool']:<22}"
        if row.get("failed"):
            print(f"{start} failed")
            continue
        print(
            f"{start} {row['size_bytes'] / 1e6:>7.2f} {row['p50_ms']:>8.3f} {row['speedup']:>8.2f}x   "
            f"[{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]   {row['cosine']:>9.6f}   {row['n']}"
        )


if __name__ == "__main__":
    main()
