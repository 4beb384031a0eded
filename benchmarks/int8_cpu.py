"""INT8 on the CPU, side by side: vlm-edge, onnxruntime's quantizers and NNCF, against FP32 on onnxruntime.

    python benchmarks/int8_cpu.py --model vit-b-32|blip-base|mobilevit-s [--json]

The model has its published size and random weights: CLIP ViT-B/32's tower, BLIP-base VQA from the pixels to the fifth
answer token, and the MobileViT-S student's tower at 256 pixels. Every tool quantizes every graph from the same
calibration inputs. One query's inputs are recorded from the FP32 pipeline, so that each engine does the same work; each
engine runs them at batch 1 in a process of its own, in short blocks that take turns. Speed-ups are ratios of medians
with a 95% interval over the blocks; the cosine is the smallest of any output on held-out inputs.
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

BLOCK_SECONDS = 0.2
ANSWER_TOKENS = 5
QUESTION = "what is in the picture?"
DATA = Path(__file__).parents[1] / "calibration"
MODELS = {
    "vit-b-32": ("clip", "vit-b-32", ("vision_encoder",), DATA / "easy-vqa-zero-shot.yaml"),
    "blip-base": ("blip-vqa", "base", ("vision_encoder", "text_encoder", "decoder"), DATA / "easy-vqa.yaml"),
    "mobilevit-s": ("blip-mobilevit", "mobilevit-s", ("vision_encoder",), DATA / "easy-vqa.yaml"),
}
"""Model and size of the zoo's, the components that are measured, and the data that calibrates them."""
BASELINE = "onnxruntime FP32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="mobilevit-s")
    parser.add_argument("--samples", type=int, default=16, help="calibration samples, of which 1 in 8 is held out")
    parser.add_argument("--rounds", type=int, default=15, help="blocks of each engine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there already")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--worker", nargs=2, metavar=("ENGINE", "QUERY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*map(Path, arguments.worker))
        return
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        rows = compare(arguments, folder.resolve())
    if arguments.json:
        print(json.dumps({"model": arguments.model, "host": host(arguments.threads), "rows": rows}, indent=1))
    else:
        print_table(rows)


def compare(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row for each engine."""
    from vlm_edge.core.stage import SilentProgress
    from vlm_edge.data import load_dataset
    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.stages.quantize_capture import capture_inputs

    _, _, components, data = MODELS[arguments.model]
    graphs = exported(arguments.model, folder)
    manifest = read_manifest(graphs)
    note("calibration inputs")
    dataset = load_dataset(data, "calibration", limit=arguments.samples)
    inputs = folder / "inputs"
    inputs.mkdir(exist_ok=True)
    capture = capture_inputs(graphs, manifest, dataset, inputs, arguments.threads, SilentProgress())
    query = recorded_query(graphs, components, folder / "query.npz")
    makers: dict[str, Callable[[Path], dict[str, Any]]] = {
        BASELINE: lambda _: engine_of("onnxruntime", graphs, components, arguments.threads),
        "openvino FP32": lambda _: engine_of("openvino", graphs, components, arguments.threads),
        "vlm-edge ort int8": lambda out: by_vlm_edge(graphs, components, data, "cpu-ort", arguments.samples, out),
        "vlm-edge openvino int8": lambda out: by_vlm_edge(
            graphs, components, data, "cpu-openvino", arguments.samples, out
        ),
    }
    for name, (engine, make) in PEERS.items():
        makers[name] = lambda out, engine=engine, make=make: by_peer(
            engine, make, graphs, components, capture, arguments.threads, out
        )
    engines: dict[str, dict[str, Any]] = {}
    for name, maker in makers.items():
        note(name)
        out = folder / name.replace(" ", "-")
        try:
            with quiet():
                engines[name] = maker(out)
        except Exception as error:  # whatever a peer ends in is its result
            note(f"{name} failed: {str(error)[:300]}")
    note(f"timing {len(engines)} engines")
    times = alternate(engines, query, folder, arguments.rounds)
    return [row_of(name, engines.get(name), times, capture) for name in makers]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def exported(model: str, folder: Path) -> Path:
    """The exported graphs of a model that is made here."""
    from vlm_edge.api import run_stage
    from vlm_edge.zoo.create import create

    name, size, _, _ = MODELS[model]
    graphs = folder / "graphs"
    if not graphs.is_dir():
        note("export")
        create(name, size, folder / "checkpoint")
        run_stage("export", {}, str(folder / "checkpoint"), graphs)
    return graphs


def recorded_query(graphs: Path, components: tuple[str, ...], file: Path) -> Path:
    """Every run of the components while the FP32 pipeline answers one query: ``number/component/tensor`` -> array."""
    from vlm_edge.backends.base import Recorder
    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.runtime.capabilities import Batch
    from vlm_edge.runtime.pipeline import build_pipeline, load_engines
    from vlm_edge.stages.compile_references import random_image

    manifest = read_manifest(graphs)
    runs: list[tuple[str, dict[str, Any]]] = []

    def recorder(component: str, engine: Any) -> Recorder:
        return Recorder(engine, lambda feed, _: runs.append((component, dict(feed))))

    engines = {name: recorder(name, engine) for name, engine in load_engines(graphs, manifest).items()}
    image = random_image(np.random.default_rng(0), manifest.image.height, manifest.image.width)
    pipeline = build_pipeline(manifest, engines, graphs)
    pipeline.dry_run(Batch([image], [QUESTION], ANSWER_TOKENS))
    kept = [run for run in runs if run[0] in components]
    np.savez(
        file,
        **{f"{number}/{name}/{key}": value for number, (name, feed) in enumerate(kept) for key, value in feed.items()},
    )
    return file


def engine_of(
    engine: str, folder: Path, components: tuple[str, ...], threads: int, suffix: str = "", source: Path | None = None
) -> dict[str, Any]:
    """What a worker needs to load an engine: files and rows of the manifest of ``source`` or of the folder itself."""
    from vlm_edge.processing.manifest import read_manifest

    manifest = read_manifest(source or folder)
    rows = {name: manifest.components[name] for name in components}
    files = {name: folder / (f"{name}{suffix}" if suffix else row.file) for name, row in rows.items()}
    return {
        "engine": engine,
        "files": {name: str(path) for name, path in files.items()},
        "rows": {name: row.model_dump(mode="json") for name, row in rows.items()},
        "options": dict(manifest.engine.options) if manifest.engine else {},
        "threads": threads,
    }


def by_vlm_edge(
    graphs: Path, components: tuple[str, ...], data: Path, target: str, samples: int, out: Path
) -> dict[str, Any]:
    from vlm_edge.api import run_stage
    from vlm_edge.processing.manifest import read_manifest

    schemes = {"*": "none", **dict.fromkeys(components, "int8")}
    if not (out / "engine").is_dir():
        out.mkdir(exist_ok=True)
        config = {"components": schemes, "samples": samples}
        run_stage("quantize", config, graphs, out / "int8", data=data, target=target)
        run_stage("compile", {}, out / "int8", out / "engine", target=target)
    info = read_manifest(out / "engine").engine
    assert info is not None
    return engine_of(info.name, out / "engine", components, info.threads)


def by_peer(
    engine: str,
    make: Callable[[Path, Path, Any], None],
    graphs: Path,
    components: tuple[str, ...],
    capture: Any,
    threads: int,
    out: Path,
) -> dict[str, Any]:
    from vlm_edge.processing.manifest import read_manifest

    suffix = ".xml" if engine == "openvino" else ".onnx"
    out.mkdir(exist_ok=True)
    for name in components:
        target = out / f"{name}{suffix}"
        if not target.exists():
            source = in_one_file(graphs / read_manifest(graphs).components[name].file, out)
            make(source, target, capture.components[name].calibration)
    found = engine_of(engine, out, components, threads, suffix, graphs)
    if engine == "openvino":
        import openvino

        hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
        found["options"] = {"INFERENCE_PRECISION_HINT": hint.to_string()}  # OpenVINO's own choice on this CPU
    return found


def in_one_file(graph: Path, folder: Path) -> Path:
    """The graph with its weights inside and without inner shapes: onnxruntime's tools lose track of weights that lie
    beside it, and stumble over shapes of what they transpose."""
    import onnx

    model = onnx.load(graph)
    model.graph.ClearField("value_info")
    onnx.save(model, folder / f"{graph.stem}.whole")
    return folder / f"{graph.stem}.whole"


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
    at_once = next(count for count in (2, 3, 5, 7, 11, 13) if len(feeds) % count)  # after a full round it finds no data
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"CalibMaxIntermediateOutputs": at_once},  # else every activation of every sample stays in memory
    )


def by_quantize_dynamic(source: Path, target: Path, _: Any) -> None:
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    prepared = target.with_suffix(".prepared")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True)


def by_nncf(source: Path, target: Path, feeds: Any) -> None:
    """nncf.quantize for a transformer with its defaults, of the ONNX graph or of OpenVINO's model of it."""
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import onnx
    import openvino

    nncf.set_log_level(logging.ERROR)
    to_openvino = target.suffix == ".xml"
    model = openvino.Core().read_model(source) if to_openvino else onnx.load(source)
    quantized = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds), model_type=nncf.ModelType.TRANSFORMER)
    if to_openvino:
        openvino.save_model(quantized, target, compress_to_fp16=False)
    else:
        onnx.save(quantized, target)


PEERS: dict[str, tuple[str, Callable[[Path, Path, Any], None]]] = {
    "onnxruntime static": ("onnxruntime", by_quantize_static),
    "onnxruntime dynamic": ("onnxruntime", by_quantize_dynamic),
    "NNCF on onnxruntime": ("onnxruntime", by_nncf),
    "NNCF on openvino": ("openvino", by_nncf),
}
"""Peers: the engine that runs them, and what makes a file of one component."""


def row_of(
    name: str, engine: dict[str, Any] | None, times: dict[str, list[list[float]]], capture: Any
) -> dict[str, Any]:
    from vlm_edge.statistics.intervals import percentile
    from vlm_edge.statistics.timing import ratio_interval

    if engine is None or name not in times:
        return {"name": name, "failed": True}
    mine, baseline = times[name], times[BASELINE]
    pooled = np.concatenate(mine)
    speedup = ratio_interval([[block] for block in baseline], [[block] for block in mine], 0.5, confidence=0.95)
    assert speedup is not None, "two blocks or more"
    return {
        "name": name,
        "speedup": speedup._asdict(),
        "cosine": worst_cosine(engine, capture),
        "p50_ms": percentile(pooled, 0.5),
        "size_bytes": sum(size_bytes(Path(file)) for file in engine["files"].values()),
        "n": len(pooled),
    }


def size_bytes(file: Path) -> int:
    """A graph and the weights beside it."""
    beside = [file.with_suffix(".bin")] if file.suffix == ".xml" else [file.with_name(f"{file.name}.data")]
    return sum(path.stat().st_size for path in (file, *beside) if path.is_file())


def load(engine: dict[str, Any]) -> dict[str, Any]:
    """The components' engines by name."""
    from vlm_edge.backends import load_engine
    from vlm_edge.processing.manifest import Component

    rows = {name: Component.model_validate(row) for name, row in engine["rows"].items()}
    return {
        name: load_engine(
            engine["engine"], Path(engine["files"][name]), row, row.threads or engine["threads"], engine["options"]
        )
        for name, row in rows.items()
    }


def worst_cosine(engine: dict[str, Any], capture: Any) -> float:
    """The smallest cosine of an output of any component with the FP32 graph's, over its held-out inputs."""
    from vlm_edge.quantizers.affine import agreement

    found = []
    for name, loaded in load(engine).items():
        captured = capture.components[name]
        runs = zip(captured.held_out, captured.references, strict=True)
        totals = agreement((reference, loaded.infer(feed)) for feed, reference in runs)
        found += [total.cosine for total in totals.values()]
    return min(found)


def alternate(
    engines: dict[str, dict[str, Any]], query: Path, folder: Path, rounds: int
) -> dict[str, list[list[float]]]:
    """Times in ms by engine, block by block; one that does not load is left out and named on stderr."""
    with contextlib.ExitStack() as stack:
        workers: dict[str, subprocess.Popen[str]] = {}
        for name, engine in engines.items():
            file = folder / f"{name.replace(' ', '-')}.json"
            file.write_text(json.dumps(engine), encoding="utf-8")
            command = [sys.executable, __file__, "--worker", str(file), str(query)]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            if ask(process, "warm up") is None:
                note(f"{name}: its engine can't run it")
            else:
                workers[name] = process
        times: dict[str, list[list[float]]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, process in workers.items():
                times[name].append(ask(process, "block") or [])
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


def worker(engine: Path, query: Path) -> None:
    """Answer every line on stdin with the times in ms of one block of queries."""
    engines = load(json.loads(engine.read_text(encoding="utf-8")))
    feeds: dict[int, tuple[str, dict[str, Any]]] = {}
    for key, value in np.load(query).items():
        number, component, tensor = key.split("/", 2)
        feeds.setdefault(int(number), (component, {}))[1][tensor] = value
    runs = [(engines[component], feed) for _, (component, feed) in sorted(feeds.items())]
    for _ in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + BLOCK_SECONDS
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            for loaded, feed in runs:
                loaded.infer(feed)
            times.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(times), flush=True)


def host(threads: int) -> dict[str, Any]:
    from vlm_edge.evaluation.host import host_record

    packages = {name: version(name) for name in ("onnxruntime", "openvino", "nncf", "onnx")}
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
    print(f"{'engine':<24} {'MB':>7} {'p50 ms':>9} {'speed-up':>9}   95% interval   {'cosine':>9}   n")
    for row in rows:
        if row.get("failed"):
            print(f"{row['name']:<24} failed")
            continue
        speedup = row["speedup"]
        print(
            f"{row['name']:<24} {row['size_bytes'] / 1e6:>7.2f} {row['p50_ms']:>9.3f} {speedup['value']:>8.2f}x   "
            f"[{speedup['low']:.2f}, {speedup['high']:.2f}]   {row['cosine']:>9.6f}   {row['n']}"
        )


if __name__ == "__main__":
    main()
