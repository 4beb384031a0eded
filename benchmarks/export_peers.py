"""Which families optimum-onnx exports beside ours, and time, file size and peak memory of each where both do.

    python benchmarks/export_peers.py [--size tiny|base] [--rounds 3] [MODEL ...]

``tiny`` are the test suite's models, one of every family; ``base`` are published sizes of those that both export, with
random weights. Each export is a process of its own, ours and theirs in turns; the time is that of the export call,
which on both sides ends with a comparison with torch, and the median of ``--rounds`` is shown. optimum-onnx wants an
older transformers, so it lives in a virtual environment under ``--cache``, made with pip on the first run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
PEER = ("optimum-onnx==0.1.0", "torch==2.13.0", "onnxruntime==1.31.1", "onnx==1.23.2", "accelerate", "pillow")
"""What its environment is made of; pip adds transformers 4.57 and optimum 2.1."""
TASKS = {
    "clip": "zero-shot-image-classification",
    "siglip": "zero-shot-image-classification",
    "Dinov2Model": "feature-extraction",
    "Dinov2ForImageClassification": "image-classification",
    "mobilevit": "image-classification",
    "vision-encoder-decoder": "image-to-text-with-past",
}
"""optimum's task by architecture or model type: a local folder does not tell it."""


def tiny_models() -> dict[str, Callable[[Path], Any]]:
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))
    from tiny_families import TINY

    return {name: tiny.write for name, tiny in TINY.items()}


def base_models() -> dict[str, Callable[[Path], Any]]:
    import transformers

    from vlm_edge.zoo.create import create

    square = {"size": {"height": 224, "width": 224}}
    crop = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}

    def siglip() -> Any:
        return transformers.SiglipModel(transformers.SiglipConfig(text_config={"pad_token_id": 0}))

    def dinov2() -> Any:
        return transformers.Dinov2Model(transformers.Dinov2Config(patch_size=14))

    def mobilevit() -> Any:
        return transformers.MobileViTForImageClassification(transformers.MobileViTConfig(num_labels=1000))

    def vit_gpt2() -> Any:
        text = transformers.GPT2Config(is_decoder=True, add_cross_attention=True, vocab_size=50257, **ids)
        config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(transformers.ViTConfig(), text)
        return transformers.VisionEncoderDecoderModel(config)

    generation = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_new_tokens": 8}
    return {
        "CLIP ViT-B/32": lambda folder: create("clip", "vit-b-32", folder),
        "SigLIP-base": lambda folder: _write(folder, siglip(), "Siglip", square, 32000, 64),
        "DINOv2-base": lambda folder: _write(folder, dinov2(), "Bit", crop),
        "MobileViT-S": lambda folder: _write(folder, mobilevit(), "MobileViT", crop),
        "ViT-GPT2": lambda folder: _write(folder, vit_gpt2(), "ViT", square, 50257, 1024, generation),
    }


def _write(
    folder: Path, model: Any, processor: str, image: dict[str, Any], vocabulary: int = 0, length: int = 0,
    generation: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    from vlm_edge.zoo.create import randomize, write_tokenizer

    randomize(model, 0)
    model.save_pretrained(folder)
    settings = {"image_processor_type": f"{processor}ImageProcessor"} | image
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    if vocabulary:
        write_tokenizer(folder, vocabulary, length)


def peer_python(cache: Path) -> Path:
    """The Python of optimum-onnx's environment, made if it isn't there."""
    folder = cache / "optimum-onnx"
    python, made = folder / "bin" / "python", folder / "made.json"
    if not made.is_file() or json.loads(made.read_text()) != list(PEER):
        print(f"installing {' '.join(PEER)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEER], check=True)
        made.write_text(json.dumps(PEER))
    return python


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def export_ours(checkpoint: Path, out: Path) -> dict[str, Any]:
    from vlm_edge.core.artifact import Artifact, ArtifactKind
    from vlm_edge.core.stage import StageInputs, StageWork
    from vlm_edge.stages.export import ExportConfig, run

    work = StageWork(out=out / "out", scratch=out / "scratch")
    work.out.mkdir()
    start = time.perf_counter()
    run(ExportConfig(), StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, checkpoint)), work)
    return _measured(start, work.out)


def export_theirs(checkpoint: Path, out: Path) -> dict[str, Any]:
    """Runs in the other environment. What optimum knows no config for, it says by its model type."""
    import optimum.exporters.onnx.model_configs  # type: ignore[import-not-found]  # noqa: F401
    from optimum.exporters.onnx import main_export
    from optimum.exporters.tasks import TasksManager

    config = json.loads((checkpoint / "config.json").read_bytes())
    kind, architecture = config["model_type"], config["architectures"][0]
    try:
        known = TasksManager.get_supported_tasks_for_model_type(kind, "onnx", library_name="transformers")
    except KeyError:
        return {"error": f"knows no model type {kind}"}
    task = TASKS.get(architecture, TASKS.get(kind, ""))
    if task not in known:
        return {"error": f"{kind}: no task {task or architecture} among {', '.join(known)}"}
    start = time.perf_counter()
    main_export(str(checkpoint), output=out, task=task, local_files_only=True)
    return _measured(start, out)


def _measured(start: float, out: Path) -> dict[str, Any]:
    files = [path for path in out.rglob("*") if ".onnx" in path.name]
    return {
        "seconds": time.perf_counter() - start,
        "files": len([path for path in files if path.suffix == ".onnx"]),
        "size_mb": sum(path.stat().st_size for path in files) / 1e6,
        "peak_mb": peak_mb(),
    }


def run_one(python: Path, side: str, checkpoint: Path) -> dict[str, Any]:
    """One export in a process of its own; ``error`` is the last line of what it said."""
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as out:
        command = [python, HERE, "--side", side, checkpoint, out]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        return {"error": lines[-1] if lines else f"exit code {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if any("not close enough" in line or ("validation" in line.lower() and "fail" in line.lower()) for line in lines):
        result["note"] = "its own check found a difference"
    return result


def median_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    failed = next((result for result in results if "error" in result), None)
    return failed or results[0] | {
        key: statistics.median(result[key] for result in results) for key in ("seconds", "peak_mb")
    }


def cells(result: dict[str, Any]) -> str:
    """files, MB, seconds, peak MB."""
    if "error" in result:
        return f"no: {result['error'][:90]} | | | "
    note = f" ({result['note']})" if "note" in result else ""
    return f"{result['files']}{note} | {result['size_mb']:.2f} | {result['seconds']:.1f} | {result['peak_mb']:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="default: all of the size")
    parser.add_argument("--size", choices=["tiny", "base"], default="tiny")
    parser.add_argument("--rounds", type=int, default=1)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--cache", type=Path, default=base / "vlm-edge" / "export-peers")
    arguments = parser.parse_args()
    python = peer_python(arguments.cache)
    models = tiny_models() if arguments.size == "tiny" else base_models()
    print("| model | ours: graphs | MB | s | peak MB | optimum-onnx: graphs | MB | s | peak MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in arguments.models or models:
        with tempfile.TemporaryDirectory(dir=arguments.cache) as folder:
            checkpoint = Path(folder) / "checkpoint"
            models[name](checkpoint)
            pairs = [
                (run_one(Path(sys.executable), "ours", checkpoint), run_one(python, "theirs", checkpoint))
                for _ in range(arguments.rounds)
            ]
        ours, theirs = (median_of(list(side)) for side in zip(*pairs, strict=True))
        print(f"| {name} | {cells(ours)} | {cells(theirs)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        export = export_ours if sys.argv[2] == "ours" else export_theirs
        print(json.dumps(export(Path(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main()
