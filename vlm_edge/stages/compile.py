"""Compile: graphs into what the target's engine loads, each component checked against the graph it was made of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vlm_edge.backends import BACKENDS
from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import StageConfig, StageInputs, StageSpec, StageWork
from vlm_edge.core.target import KIT_ASKED
from vlm_edge.errors import VlmEdgeError
from vlm_edge.facts import CompileFacts

if TYPE_CHECKING:
    from vlm_edge.core.target import Target
    from vlm_edge.processing.manifest import Component, EngineInfo


class CompileConfig(StageConfig):
    """``compile: {}``.

    ``full``: the graph is rewritten into what measured fastest on the target's engine. ``runtime``: the graph as it
    is, which the engine optimizes by itself when it loads it; that is how a variant without a compile stage is run.
    """

    optimize: Literal["runtime", "full"] = "full"
    tune_seconds: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="seconds of searching a component for the fastest forms of its INT8 layers; 0: no search",
    )
    max_batch: int = Field(
        default=16, ge=1, le=4096, description="largest batch of an engine with fixed bounds (TensorRT)"
    )


def run(config: CompileConfig, inputs: StageInputs, work: StageWork) -> None:
    """Write the engine folder; ``work.facts`` holds each component's agreement, size and what was done to it.

    Where this machine can build the engine but not run it, nothing is held against the graphs. Where it can't build it,
    and the engine is built on the device alone, or the target asks for it, a build kit is written.

    Raises:
        VlmEdgeError: the engine can't be compiled here, can't take a graph, or strays from it.
    """
    from vlm_edge.backends import builds_on_device, compile_available
    from vlm_edge.stages.compile_kit import write_kit

    assert inputs.target is not None
    target = inputs.target
    reason = KIT_ASKED if target.kit else compile_available(target.engine)
    if reason is not None and (target.kit or builds_on_device(target.engine)):
        write_kit(inputs, work, config.max_batch, reason)
    elif reason is not None:
        raise VlmEdgeError(f"engine {target.engine}: {reason}", "see `vlm-edge doctor` for what this machine can do")
    else:
        _build(config, inputs.source.path, target, work)


def _build(config: CompileConfig, source: Path, target: Target, work: StageWork) -> None:
    from vlm_edge.backends import backend, engine_available, load_engine, resolve
    from vlm_edge.backends.compiling import CompileJob
    from vlm_edge.processing.manifest import copy_side_files, read_manifest, write_manifest
    from vlm_edge.stages.compile_references import reference_runs, require_sound_scales

    unchecked = engine_available(target.engine)
    compile_component = resolve(backend(target.engine).compile)
    manifest = read_manifest(source)
    copy_side_files(source, work.out, manifest)
    jobs: list[CompileJob] = []
    rows: dict[str, Component] = {}
    facts: dict[str, Any] = {}
    with work.progress.bar("compile", 2 * len(manifest.components) + 1) as ticker:
        references = reference_runs(source, manifest, target.threads, work.seed, work.scratch)
        ticker.advance(note="compiling")
        for name, component in manifest.components.items():
            require_sound_scales(source / component.file)
            job = CompileJob(
                name=name,
                graph=source / component.file,
                component=component,
                manifest=manifest,
                reference=references[name],
                out=work.out,
                scratch=work.scratch,
                threads=target.threads,
                full=config.optimize == "full",
                tune_seconds=config.tune_seconds,
                max_batch=config.max_batch,
                compute_capabilities=target.compute_capabilities,
            )
            rows[name], facts[name] = compile_component(job)
            jobs.append(job)
            ticker.advance(note=name)
        info = engine_info(target)
        for job in jobs:
            row = rows[job.name]
            facts[job.name] |= {"size_bytes": _size_bytes(work.out, row.file), "integer": job.integer}
            if unchecked is None:
                threads = row.threads or target.threads
                engine = load_engine(target.engine, work.out / row.file, row, threads, info.options)
                facts[job.name] |= job.check(engine)
            ticker.advance(note=f"{job.name} checked")
    shutil.rmtree(work.scratch / "runs")
    write_manifest(work.out, manifest.model_copy(update={"components": rows, "engine": info}))
    work.facts.update(engine=target.engine, optimize=config.optimize, components=facts)
    if unchecked is not None:
        work.facts["unchecked"] = unchecked


def engine_info(target: Target) -> EngineInfo:
    """The manifest's ``engine``: name, version, threads and options."""
    from vlm_edge.backends import backend, engine_version
    from vlm_edge.processing.manifest import EngineInfo

    return EngineInfo(
        name=target.engine,
        version=engine_version(target.engine),
        threads=target.threads,
        options=dict(backend(target.engine).options),
    )


def _size_bytes(folder: Path, file: str) -> int:
    """The component's file, and the weights beside it."""
    return sum(path.stat().st_size for path in folder.glob(f"{Path(file).stem}.*"))


SPEC = StageSpec(
    name="compile",
    version=6,
    config=CompileConfig,
    source=ArtifactKind.GRAPHS,
    output=ArtifactKind.ENGINE,
    run=run,
    facts=CompileFacts,
    packages=("onnx", *(package for spec in BACKENDS.values() for package in spec.packages)),
    reads=frozenset({"target"}),
    host_bound=True,
    implied={"optimize": "runtime"},
    summary="Compile graphs into an engine for the target, each component checked against its graph.",
)
