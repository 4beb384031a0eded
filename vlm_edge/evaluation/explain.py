"""Explain an engine's speed: the time of each operator, integer and float products, causes of slow ones."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.backends import REFERENCE, backend, backends, engine_available, resolve
from vlm_edge.backends.base import Array, Feed
from vlm_edge.backends.explaining import ExplainJob
from vlm_edge.core.stage import Progress, TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.footprint import recorded_engines
from vlm_edge.evaluation.host import host_record
from vlm_edge.evaluation.queries import draw_samples, queries_of, read_images
from vlm_edge.explain.view import Int8Speed
from vlm_edge.machine import Machine, kernels, machine
from vlm_edge.processing.manifest import PipelineManifest, read_manifest
from vlm_edge.processing.sealing import MANIFEST_NAME
from vlm_edge.runtime.capabilities import Batch
from vlm_edge.runtime.pipeline import build_pipeline

MORE_TOKENS = 3
"""Tokens to decode, so that the last step has a past."""


@dataclass(frozen=True)
class Asked:
    """Settings of :func:`explain`: ``runs`` is 0 for no timing; ``dims`` sizes of named free dimensions."""

    runs: int = 20
    threads: int = 1
    task: TaskSpec | None = None
    inputs: Path | None = None
    dims: Mapping[str, int] | None = None
    components: tuple[str, ...] = ()


def explain(path: Path, asked: Asked, progress: Progress) -> dict[str, Any]:
    """Explain the file of a graph or a compiled component, or every component of a folder with a manifest; JSON values.

    ``components`` maps a name to the values of its backend's explainer; ``host`` lists the kernels that the CPU lacks.
    An engine that can't run here is explained without times.

    Raises:
        VlmEdgeError: it can't be read or run, its engine has no explainer, or a component is unknown.
    """
    manifest = read_manifest(path) if path.is_dir() else None
    engine = manifest.engine.name if manifest and manifest.engine else REFERENCE
    files = [path / row.file for row in manifest.components.values()] if manifest else [path]
    explainers = {file: _explainer(file, engine, path) for file in files}
    if engine_available(engine) is not None:
        asked = replace(asked, runs=0)
    host, machine, isa = describe_host()
    jobs = _jobs(path, manifest, asked)
    found: dict[str, Any] = {}
    with progress.bar("explain", len(jobs)) as ticker:
        speed = measure_speed() if asked.runs else Int8Speed()
        for job in jobs:
            found[job.name] = explainers[job.file](replace(job, machine=machine, isa=isa, speed=speed))
            ticker.advance(note=job.name)
    if speed.measured:
        host["products"] = {
            "float32_over_u8s8": round(speed.float_over_u8s8, 2),
            "u8u8_over_u8s8": round(speed.u8u8_over_u8s8, 2),
            "s8s8_over_u8s8": round(speed.s8s8_over_u8s8, 2),
        }
    return {"path": str(path), "engine": engine, "host": host, "runs": asked.runs, "components": found}


def _explainer(file: Path, engine: str, path: Path) -> Callable[[ExplainJob], dict[str, Any]]:
    """The explainer of the backend that compiles into files of this kind, the folder's own backend first."""
    own = backend(engine)
    spec = next((each for each in (own, *backends().values()) if file.suffix in each.files), own)
    if not spec.explain:
        raise VlmEdgeError(f"{path}: {spec.name} can't be explained here, so NOT MEASURED", spec.explain_hint)
    explainer: Callable[[ExplainJob], dict[str, Any]] = resolve(spec.explain)
    return explainer


def _jobs(path: Path, manifest: PipelineManifest | None, asked: Asked) -> list[ExplainJob]:
    """Every file to explain, with its feed where that is known."""
    if manifest is None:
        if not path.is_file():
            raise VlmEdgeError(f"{path}: no such file or folder", "give an .onnx file or a folder with a manifest.json")
        if asked.task is not None or asked.components:
            raise VlmEdgeError(
                f"{path}: --data and --component are for a folder with a {MANIFEST_NAME}", "give --inputs for a graph"
            )
        feed, fed = (read_feed(asked.inputs), asked.inputs.name) if asked.inputs else (None, "noise")
        dims = asked.dims or {}
        return [ExplainJob(path.stem, path, asked.threads, feed=feed, fed=fed, runs=asked.runs, dims=dims)]
    if unknown := sorted(set(asked.components) - set(manifest.components)):
        raise VlmEdgeError(f"{path}: no component {unknown[0]!r}", f"it has {', '.join(manifest.components)}")
    if asked.inputs is not None or asked.dims:
        raise VlmEdgeError(f"{path}: --inputs and --dim are for a single graph", "give --data, or one of its files")
    feeds = pipeline_feeds(path, manifest, asked.task, asked.threads) if asked.runs else {}
    fed = "a sample of the data" if asked.task is not None else "a query with a noise image"
    options = manifest.engine.options if manifest.engine else {}
    limit = manifest.engine.threads if manifest.engine else asked.threads
    return [
        ExplainJob(
            name,
            path / row.file,
            min(asked.threads, row.threads or limit),
            {**options, **row.options},
            feeds.get(name),
            fed if name in feeds else "noise",
            manifest.precision.get(name, ""),
            row,
            asked.runs,
        )
        for name, row in manifest.components.items()
        if not asked.components or name in asked.components
    ]


def pipeline_feeds(folder: Path, manifest: PipelineManifest, task: TaskSpec | None, threads: int) -> dict[str, Feed]:
    """Inputs of each component's last call while the pipeline answers one query: a decoder's is a step with a past.

    With ``task`` the query is the first readable one of its test split, else noise in the manifest's size with a few
    words. A component that the query doesn't use is left out.

    Raises:
        VlmEdgeError: the pipeline can't be loaded, or no image of the task can be read.
    """
    engines, feeds = recorded_engines(folder, manifest, threads)
    pipeline = build_pipeline(manifest, engines, folder)
    if task is not None:
        samples = draw_samples(task, 8, seed=0)
        queries_of(pipeline, read_images(samples)[:1], samples)[0]()
    else:
        size = (manifest.image.height, manifest.image.width, 3)
        image = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        pipeline.dry_run(Batch([image], ["what is in the image"], MORE_TOKENS))
    return {name: each[-1] for name, each in feeds.items() if each}


def read_feed(path: Path) -> Feed:
    """Arrays of an ``.npz`` file by their names.

    Raises:
        VlmEdgeError: it is no such file.
    """
    hint = "write it with numpy.savez(path, INPUT=array)"
    if not zipfile.is_zipfile(path):
        raise VlmEdgeError(f"{path}: no .npz file", hint)
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except ValueError as error:
        raise VlmEdgeError(f"{path}: it holds objects that are no arrays of numbers", hint) from error


_ROWS, _INNER, _COLUMNS = 64, 512, 512
_REPETITIONS = 12


_LACKS = {
    "AVX2": "onnxruntime's integer kernels fall back to SSE: INT8 may lose against float",
    "AVX512": "kernels work on 256 bits at a time",
    "VNNI": "a product of 8-bit integers takes 3 instructions, gains less over float, and u8 x s8 may saturate at 16 "
    "bits: quantize for `isa: x86` (7-bit weights)",
    "AMX": "no tile unit: matrix products of many rows run on VNNI",
    "dot product": "INT8 products are widened by hand and gain little over float",
    "i8mm": "no 8-bit matrix instruction: products run on the dot product",
}
"""Consequence of the absence of each INT8 kernel (:data:`vlm_edge.machine.KERNELS`), the worst first."""


def lacks(of: Machine, isa: frozenset[str]) -> dict[str, str]:
    """Kernels that a CPU lacks, the worst first, each with the consequence."""
    have = kernels(of, isa)
    return {name: means for name, means in _LACKS.items() if not have.get(name, True)}


def describe_host() -> tuple[dict[str, Any], Machine, frozenset[str]]:
    """CPU, cores, instruction sets and lacking kernels as JSON values; the kind of machine; its instruction sets."""
    record = host_record()
    family, isa = machine(record["machine"]), frozenset(record["isa"])
    rows = [{"name": name, "means": means} for name, means in lacks(family, isa).items()]
    return {name: record[name] for name in ("cpu", "machine", "isa", "cores")} | {"lacks": rows}, family, isa


def measure_speed() -> Int8Speed:
    """Time one matrix product in each pair of types, on one thread, in turns; the least of 12 runs (about 0.1 s)."""
    generator = np.random.default_rng(0)
    runs = [_float_product(generator), *(_integer_product(generator, *types) for types in (_U8S8, _U8U8, _S8S8))]
    best = [float("inf")] * len(runs)
    for _ in range(_REPETITIONS):
        for index, run in enumerate(runs):
            began = time.perf_counter()
            run()
            best[index] = min(best[index], time.perf_counter() - began)
    floating, u8s8, u8u8, s8s8 = best
    return Int8Speed(max(1.0, floating / u8s8), max(1.0, u8u8 / u8s8), max(1.0, s8s8 / u8s8), measured=True)


_U8S8, _U8U8, _S8S8 = (np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)


def _float_product(generator: np.random.Generator) -> Callable[[], object]:
    weight = generator.normal(size=(_INNER, _COLUMNS)).astype(np.float32)
    data = generator.normal(size=(_ROWS, _INNER)).astype(np.float32)
    return _product("MatMul", data, {"w": weight})


def _integer_product(
    generator: np.random.Generator, data_type: type[np.integer[Any]], weight_type: type[np.integer[Any]]
) -> Callable[[], object]:
    data: Array = generator.integers(0, 100, (_ROWS, _INNER)).astype(data_type)
    weight: Array = generator.integers(0, 100, (_INNER, _COLUMNS)).astype(weight_type)
    zeros: dict[str, Array] = {"zero": np.array(3, data_type), "w_zero": np.array(0, weight_type)}
    return _product("MatMulInteger", data, {"w": weight, **zeros})


def _product(op_type: str, data: Any, constants: dict[str, Any]) -> Callable[[], object]:
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *constants], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(data.dtype), data.shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": data})
