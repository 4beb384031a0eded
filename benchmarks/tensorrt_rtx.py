"""Plans of TensorRT-RTX at real size, with random weights, built on the CPU: time, peak memory, size, layers in INT8.

    python benchmarks/tensorrt_rtx.py [clip-vit-b-32] [mobilevit-s] [blip-vqa-base] [smolvlm-256m] [--json FILE]

Every component is built in FP32, in FP16 and in INT8 (ranges from noise; what is not INT8 is FP16), each in a process
of its own. Peak memory is VmHWM, the interpreter and NVIDIA's libraries included. Bar: an INT8 plan is smaller than the
FP16 one, and that than the FP32 one; it exits with 1 where one is not. No plan is run: that takes a GPU. Weights and
graphs are kept under --folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _language_models import smolvlm_256m
from export_memory import blip_vqa_base, clip_vit_b_32, peak_mb


def mobilevit_s(folder: Path) -> None:
    """apple/mobilevit-small."""
    import transformers

    from vlm_edge.zoo.create import randomize

    model = transformers.MobileViTModel(transformers.MobileViTConfig())
    randomize(model, 0)
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "MobileViTImageProcessor", **size})
    )


MODELS = {
    "mobilevit-s": mobilevit_s,
    "clip-vit-b-32": clip_vit_b_32,
    "blip-vqa-base": blip_vqa_base,
    "smolvlm-256m": smolvlm_256m,
}
"""From the smallest checkpoint to the largest."""
PRECISIONS = ("FP32", "FP16", "INT8")


def prepare(name: str, folder: Path) -> None:
    """Write the checkpoint and its graphs, where they aren't there yet."""
    from vlm_edge.api import run_stage

    if not (folder / "checkpoint").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        MODELS[name](folder / "checkpoint")
    if not (folder / "FP32").is_dir():
        run_stage("export", {}, folder / "checkpoint", folder / "FP32")
    if not (folder / "FP16").is_dir():
        halve(folder)


def halve(folder: Path) -> None:
    """The FP32 graphs in FP16, as the export stage makes them."""
    from vlm_edge.core.stage import StageWork
    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.stages.export_half import random_runs, write_half

    manifest = read_manifest(folder / "FP32")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = StageWork(out=folder, scratch=Path(scratch))
        runs = random_runs(folder / "FP32", manifest, work)
        written, _ = write_half("float16", folder / "FP32", manifest, runs, work)
        shutil.move(written, folder / "FP16")


def quantize(folder: Path, name: str) -> None:
    """One component's graph in INT8, as compile builds it."""
    from vlm_edge.backends.lowering import lowering_of
    from vlm_edge.graphs.files import load_graph, save_graph
    from vlm_edge.graphs.passes.half_precision import as_float32
    from vlm_edge.graphs.passes.split_fused import SplitFused
    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.stages.compile_references import reference_runs
    from vlm_edge.stages.quantize_attempt import quantize_graph

    manifest = read_manifest(folder / "FP32")
    graph = folder / "FP16" / manifest.components[name].file
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        feeds = [feed for feed, _ in reference_runs(folder / "FP32", manifest, 2, 0, Path(scratch))[name]]
        (folder / "INT8").mkdir(exist_ok=True)
        lowering = lowering_of("tensorrt-rtx", "cuda")
        model = load_graph(graph)
        in_half = as_float32(model)
        assert in_half is not None
        model = quantize_graph(model, "int8", feeds, lowering)
        in_half(model)
        SplitFused()(model)
        save_graph(model, folder / "INT8" / graph.name)


def build(folder: Path, name: str, precision: str) -> dict[str, Any]:
    """Time, memory and size of one plan, measured in this process."""
    from vlm_edge.backends.tensorrt.build import plan_of
    from vlm_edge.backends.tensorrt.profiles import dimension_ranges, profile_shapes
    from vlm_edge.backends.tensorrt_rtx.plan import in_float
    from vlm_edge.backends.tensorrt_rtx.wheels import PRODUCT, bindings
    from vlm_edge.graphs.edit import name_of
    from vlm_edge.graphs.files import load_graph
    from vlm_edge.graphs.passes.tensorrt_form import integer_nodes
    from vlm_edge.processing.manifest import read_manifest

    manifest = read_manifest(folder / "FP32")
    component = manifest.components[name]
    graph = folder / precision / component.file
    trt, start = bindings(), time.perf_counter()
    plan = plan_of(trt, graph, profile_shapes(component, dimension_ranges(manifest, 1)), PRODUCT)
    row = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb(), "plan_mb": len(plan) / 1e6}
    quantized = {name_of(node) for node in integer_nodes(load_graph(graph).graph)}
    left = sorted(quantized & in_float(bytes(plan)))
    return row | {"quantized": len(quantized), "left_in_float": left, "version": trt.__version__}


def child(*arguments: str) -> Any:
    """The JSON that this script prints in a process of its own; None where that fails, its words on stderr."""
    run = subprocess.run([sys.executable, __file__, *arguments], check=False, capture_output=True, text=True)
    if run.returncode:
        print(f"{' '.join(arguments)}: {run.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(run.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="default: all")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "vlm-edge-tensorrt-rtx")
    parser.add_argument("--json", type=Path, help="write every row there")
    parser.add_argument("--do", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.do:
        task, *words = arguments.do
        steps = {"prepare": prepare, "quantize": quantize, "build": build}
        where = arguments.folder / arguments.models[0]
        print(json.dumps(steps[task](*([arguments.models[0], where] if task == "prepare" else [where, *words]))))
        return 0
    print("| model | component | precision | s | peak MB | plan MB | in INT8 | left in float | bar |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | --- | --- |")
    rows: list[dict[str, Any]] = []
    for model in arguments.models or MODELS:
        common = ("--folder", str(arguments.folder), model, "--do")
        child(*common, "prepare")
        manifest = json.loads((arguments.folder / model / "FP32" / "manifest.json").read_text())
        for name in manifest["components"]:
            child(*common, "quantize", name)
            built = {each: child(*common, "build", name, each) for each in PRECISIONS}
            sizes = [row["plan_mb"] for row in built.values() if row]
            smaller = len(sizes) == len(PRECISIONS) and sizes[0] > sizes[1] > sizes[2]
            for precision, row in built.items():
                rows.append({"model": model, "component": name, "precision": precision, "met": bool(smaller)})
                rows[-1] |= row or {}
                print(in_words(rows[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(not all(row["met"] for row in rows))


def in_words(row: dict[str, Any]) -> str:
    """A line of the table."""
    start = f"| {row['model']} | {row['component']} | {row['precision']} |"
    if "seconds" not in row:
        return f"{start} | | | | not built | missed |"
    left, bar = ", ".join(row["left_in_float"]), "met" if row["met"] else "missed"
    count = f"{row['quantized'] - len(row['left_in_float'])} of {row['quantized']}" if row["quantized"] else ""
    numbers = f"{row['seconds']:.0f} | {row['peak_mb']:.0f} | {row['plan_mb']:.1f}"
    return f"{start} {numbers} | {count} | {left} | {bar if row['precision'] == 'INT8' else ''} |"


if __name__ == "__main__":
    sys.exit(main())
