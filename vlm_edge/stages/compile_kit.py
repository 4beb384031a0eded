"""Write a build kit: what a device needs to build its own engine, and to see that it computes what the graphs do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vlm_edge.backends import REFERENCE, engine_version
from vlm_edge.backends.base import Array, Engine
from vlm_edge.backends.compiling import float_engine, is_integer
from vlm_edge.backends.kits import GOLDEN_FOLDER, KIT_NAME, Kit, KitComponent, kit_form, write_sums
from vlm_edge.backends.reference import ReferenceRuns
from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.graphs.files import load_graph
from vlm_edge.processing.manifest import read_manifest, write_manifest
from vlm_edge.stages.compile_references import reference_runs, require_sound_scales

MOST_GOLDEN_BYTES = 1 << 26
"""Of one component's golden runs together; the first is kept in any case."""


def write_kit(inputs: StageInputs, work: StageWork, max_batch: int, reason: str) -> None:
    """Write the graphs, golden runs, scripts and sums into the stage's output.

    Args:
        max_batch: largest batch of an engine with fixed bounds.
        reason: why no engine is built here.

    Raises:
        VlmEdgeError: the engine would refuse a graph.
    """
    assert inputs.target is not None
    source, target, form = inputs.source.path, inputs.target, kit_form(inputs.target.engine)
    manifest = read_manifest(source)
    parts, facts, types = {}, {}, {}
    with work.progress.bar("build kit", len(manifest.components) + 1) as ticker:
        for name in manifest.files:
            (work.out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, work.out / name)
        references = reference_runs(source, manifest, target.threads, work.seed, work.scratch)
        ticker.advance(note="reference runs")
        for name, component in manifest.components.items():
            graph = source / component.file
            require_sound_scales(graph)
            form.check(graph)
            types[name] = {value.dtype for value in load_graph(graph).graph.initializers.values()}
            floating = float_engine(graph, component, work.scratch) if is_integer(graph) else None
            parts[name] = KitComponent(
                golden=tuple(_golden(floating, references[name], work, name)),
                integer=is_integer(graph),
                profile=form.profile(component, manifest, max_batch),
            )
            size = sum(file.stat().st_size for file in work.out.glob(f"{component.file}*"))
            facts[name] = {"size_bytes": size, "integer": parts[name].integer}
            ticker.advance(note=name)
    shutil.rmtree(work.scratch / "runs")
    emulator = f"{REFERENCE} {engine_version(REFERENCE)}"  # which has no kernels for bfloat16 on a CPU
    kit = Kit(
        engine=target.engine,
        target=target.name,
        threads=target.threads,
        reason=reason,
        emulated_by=None if ir.DataType.BFLOAT16 in set().union(*types.values()) else emulator,
        components=parts,
    )
    (work.out / KIT_NAME).write_text(kit.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for script, text in form.scripts(kit, manifest).items():
        (work.out / script).write_text(text, encoding="utf-8")
        (work.out / script).chmod(0o755)
    write_sums(work.out, (path.relative_to(work.out).as_posix() for path in work.out.rglob("*") if path.is_file()))
    write_manifest(work.out, manifest)
    work.facts.update(engine=target.engine, optimize="runtime", components=facts, unchecked=reason, kit=True)


def _golden(floating: Engine | None, runs: ReferenceRuns, work: StageWork, name: str) -> Iterator[str]:
    """Write runs at batch 1, with the outputs of ``floating``, the same graph in float arithmetic; their names."""
    (work.out / GOLDEN_FOLDER / name).mkdir(parents=True)
    total = 0
    for position in range(runs.single_runs):
        feed, outputs = runs[position]
        sides = [feed, outputs, *([floating.infer(feed)] if floating is not None else [])]
        arrays: dict[str, Array] = {
            f"{side}/{key}": each for side, part in enumerate(sides) for key, each in part.items()
        }
        total += sum(each.nbytes for each in arrays.values())
        if position and total > MOST_GOLDEN_BYTES:
            return
        file = f"{GOLDEN_FOLDER}/{name}/{position}.npz"
        np.savez_compressed(work.out / file, **arrays)  # type: ignore[arg-type]
        yield file
