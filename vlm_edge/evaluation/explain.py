"""Where an engine's time goes, what of it runs in integers, and what would make it faster."""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vlm_edge.core.stage import Progress, TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.explain_facts import graph_facts
from vlm_edge.evaluation.explain_feeds import Feed, generated_feed, pipeline_feeds, read_feed
from vlm_edge.evaluation.explain_host import describe_host, measure_speed
from vlm_edge.evaluation.explain_session import LARGEST_INLINE_BYTES, LoadedGraph
from vlm_edge.explain.causes import explain_graph
from vlm_edge.explain.proto_graph import Graph
from vlm_edge.explain.view import Int8Speed, Int8View
from vlm_edge.machine import Machine
from vlm_edge.processing.manifest import Component, PipelineManifest, read_manifest
from vlm_edge.processing.sealing import MANIFEST_NAME


@dataclass(frozen=True)
class Asked:
    """What ``explain`` is asked: ``runs`` is 0 where no time is to be taken."""

    runs: int = 20
    threads: int = 1
    task: TaskSpec | None = None
    inputs: Path | None = None
    dims: Mapping[str, int] | None = None
    components: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One file to look at: a component's, or a graph on its own (its options are the engine's defaults).

    scheme: how the component was quantized, as the manifest tells. component: its row there.
    """

    name: str
    file: Path
    threads: int
    options: Mapping[str, str | int | float | bool]
    feed: Feed | None
    fed: str = "noise"
    scheme: str = ""
    component: Component | None = None


def explain(path: Path, asked: Asked, progress: Progress) -> dict[str, Any]:
    """Look at an ONNX file, or at every component of a folder with a manifest; JSON values.

    ``components`` maps a name to what :func:`explain_part` gives; ``host`` says what the CPU lacks.

    Raises:
        VlmEdgeError: it can't be read or run, it is a TensorRT plan, or a component is unknown.
    """
    manifest = read_manifest(path) if path.is_dir() else None
    engine = manifest.engine.name if manifest and manifest.engine else "onnxruntime"
    if engine == "tensorrt" or path.suffix in (".plan", ".engine"):
        raise VlmEdgeError(
            f"{path}: a TensorRT plan says nothing of itself here, so NOT MEASURED",
            "explain the folder that it was compiled from; on the device, trtexec --dumpLayerInfo --dumpProfile",
        )
    host, machine, isa = describe_host()
    parts = _parts(path, manifest, asked)
    found: dict[str, Any] = {}
    with progress.bar("explain", len(parts)) as ticker:
        speed = measure_speed() if asked.runs else Int8Speed()
        for part in parts:
            if part.file.suffix == ".xml":
                from vlm_edge.evaluation.explain_openvino import explain_ir

                found[part.name] = explain_ir(
                    part.file,
                    part.feed,
                    part.threads,
                    part.options,
                    runs=asked.runs,
                    dims=asked.dims or {},
                    component=part.component,
                )
                found[part.name] |= {"fed": part.fed} if asked.runs else {}
            else:
                found[part.name] = explain_part(part, asked, machine, isa, speed)
            ticker.advance(note=part.name)
    if speed.measured:
        host["products"] = {
            "float32_over_u8s8": round(speed.float_over_u8s8, 2),
            "u8u8_over_u8s8": round(speed.u8u8_over_u8s8, 2),
            "s8s8_over_u8s8": round(speed.s8s8_over_u8s8, 2),
        }
    return {"path": str(path), "engine": engine, "host": host, "runs": asked.runs, "components": found}


def explain_part(part: Part, asked: Asked, machine: Machine, isa: frozenset[str], speed: Int8Speed) -> dict[str, Any]:
    """One ONNX file: counts of its nodes, fallbacks, leftovers, time by operator, and ranked findings; JSON values."""
    source = Graph(_load(part.file))
    with tempfile.TemporaryDirectory(prefix="vlm-edge-explain-") as scratch:
        loaded = LoadedGraph(part.file, threads=part.threads, options=part.options, scratch=Path(scratch))
        timing = None
        if asked.runs:
            feed = generated_feed(loaded.inputs(), asked.dims or {}) if part.feed is None else part.feed
            timing = loaded.time(feed, asked.runs)
    view = Int8View(
        source=source,
        graph=Graph(loaded.model),
        machine=machine,
        isa=isa,
        speed=speed,
        read=partial(_read, source, part.file.parent),
        equal_weights=equal_weights(source.model, part.file.parent),
        chosen=part.scheme in ("int8", "int8-smooth"),
    )
    findings = explain_graph(view, timing.shares() if timing else None)
    report: dict[str, Any] = {"file": part.file.name, "threads": part.threads}
    if timing:
        shapes = {name: list(value.shape) for name, value in feed.items()}
        report |= {"p50_ms": round(timing.p50_ms, 4), "kernels_ms": round(sum(timing.node_ms.values()), 4)}
        report |= {"runs": timing.runs, "fed": part.fed}
        report["inputs"] = shapes
    return report | graph_facts(view, findings, timing)


def equal_weights(model: onnx.ModelProto, folder: Path) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Names of large initializers that hold the same bytes in the same type and shape, with those bytes."""
    groups: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
    sizes: dict[tuple[Any, ...], int] = {}
    for tensor in model.graph.initializer:
        content = _content(tensor, folder)
        if len(content) >= LARGEST_INLINE_BYTES:
            key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest())
            groups[key].append(tensor.name)
            sizes[key] = len(content)
    return tuple((tuple(names), sizes[key]) for key, names in groups.items() if len(names) > 1)


def _parts(path: Path, manifest: PipelineManifest | None, asked: Asked) -> list[Part]:
    """Every file to look at, with what it is fed where that is known."""
    if manifest is None:
        if not path.is_file():
            raise VlmEdgeError(f"{path}: no such file or folder", "give an .onnx file or a folder with a manifest.json")
        if asked.task is not None or asked.components:
            raise VlmEdgeError(
                f"{path}: --data and --component are for a folder with a {MANIFEST_NAME}", "give --inputs for a graph"
            )
        feed, fed = (read_feed(asked.inputs), asked.inputs.name) if asked.inputs else (None, "noise")
        return [Part(path.stem, path, asked.threads, {}, feed, fed)]
    if unknown := sorted(set(asked.components) - set(manifest.components)):
        raise VlmEdgeError(f"{path}: no component {unknown[0]!r}", f"it has {', '.join(manifest.components)}")
    if asked.inputs is not None or asked.dims:
        raise VlmEdgeError(f"{path}: --inputs and --dim are for a single graph", "give --data, or one of its files")
    feeds = pipeline_feeds(path, manifest, asked.task, asked.threads) if asked.runs else {}
    options = manifest.engine.options if manifest.engine else {}
    limit = manifest.engine.threads if manifest.engine else asked.threads
    return [
        Part(
            name,
            path / row.file,
            min(asked.threads, row.threads or limit),
            {**options, **row.options},
            *_fed(feeds, name, asked),
            manifest.precision.get(name, ""),
            row,
        )
        for name, row in manifest.components.items()
        if not asked.components or name in asked.components
    ]


def _fed(feeds: Mapping[str, Feed], name: str, asked: Asked) -> tuple[Feed | None, str]:
    """A component's feed, and in words where it is from."""
    if name not in feeds:
        return None, "noise"
    return feeds[name], "a sample of the data" if asked.task is not None else "a query with a noise image"


def _load(path: Path) -> onnx.ModelProto:
    """The graph with local functions inlined, its weights left where they are."""
    import onnx.inliner
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise VlmEdgeError(f"{path}: not an ONNX file, or it is corrupt: {error}", "export it again") from error
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _read(graph: Graph, folder: Path, name: str) -> NDArray[Any] | None:
    tensor = graph.initializers.get(name)
    return None if tensor is None else numpy_helper.to_array(tensor, str(folder))


def _content(tensor: onnx.TensorProto, folder: Path) -> bytes:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return bytes(numpy_helper.to_array(tensor, str(folder)).tobytes())
    return bytes(tensor.raw_data)
