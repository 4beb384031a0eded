"""Export at real size with random weights: peak memory, time, how far the graphs are from torch, and whether all of
them together answer as the model does.

    python benchmarks/export_memory.py [clip-vit-b-32] [siglip-base] ... [--json FILE]

Bars: peak memory at most 2.5 times the checkpoint, every component within 1e-4 of torch (relative), every answer
token for token the one of `generate`. Exits with 1 where one is missed. Each export runs in a process of its own; peak
memory is VmHWM, mapped files, the interpreter and its libraries included (what these alone take stands in a column of
its own). Weights are written once, by another process, and kept under --folder: 17 GB for all.
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

from _language_models import NEW_TOKENS, blip2_opt_125m, llava_0_7b, smolvlm_256m

LARGEST_RATIO, LARGEST_ERROR = 2.5, 1e-4

SIGLIP_IMAGE = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 224, "width": 224}}
FLORENCE_IMAGE = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"height": 768, "width": 768},
    "do_center_crop": False,
}


def siglip_base(folder: Path) -> None:
    """google/siglip-base-patch16-224."""
    import transformers

    config = transformers.SiglipConfig(text_config={"vocab_size": 32000, "pad_token_id": 0}, vision_config={})
    _write(folder, transformers.SiglipModel(config), SIGLIP_IMAGE, 32000, 64, {})


def florence_2_base(folder: Path) -> None:
    """florence-community/Florence-2-base."""
    import transformers

    text = {
        "model_type": "bart", "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 51289,
        "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072, "max_position_embeddings": 1024, "pad_token_id": 0,
    }  # fmt: skip
    config = transformers.Florence2Config(text_config=text, vision_config={"projection_dim": 768}, image_token_id=5)
    generation = {"decoder_start_token_id": 3, "eos_token_id": 3, "pad_token_id": 0, "forced_bos_token_id": 2}
    _write(
        folder, transformers.Florence2ForConditionalGeneration(config), FLORENCE_IMAGE, 51289, 1024,
        generation | {"no_repeat_ngram_size": 3, "max_new_tokens": NEW_TOKENS},
    )  # fmt: skip


def clip_vit_b_32(folder: Path) -> None:
    """openai/clip-vit-base-patch32."""
    _zoo(folder, "clip", "vit-b-32")


def clip_vit_l_14(folder: Path) -> None:
    """openai/clip-vit-large-patch14."""
    _zoo(folder, "clip", "vit-l-14")


def blip_vqa_base(folder: Path) -> None:
    """Salesforce/blip-vqa-base."""
    _zoo(folder, "blip-vqa", "base")
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": NEW_TOKENS}))


def _zoo(folder: Path, name: str, size: str) -> None:
    from vlm_edge.zoo.create import create

    create(name, size, folder)


def _write(
    folder: Path, model: Any, image: dict[str, Any], vocabulary: int, length: int, generation: dict[str, Any]
) -> None:
    from vlm_edge.zoo.create import randomize, write_tokenizer

    randomize(model, 0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(folder, vocabulary, length)


MODELS = {
    "clip-vit-b-32": clip_vit_b_32,
    "siglip-base": siglip_base,
    "florence-2-base": florence_2_base,
    "smolvlm-256m": smolvlm_256m,
    "blip-vqa-base": blip_vqa_base,
    "clip-vit-l-14": clip_vit_l_14,
    "llava-0.7b": llava_0_7b,
    "blip2-opt-125m": blip2_opt_125m,
}
"""From the smallest checkpoint to the largest."""


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def export(checkpoint: Path) -> dict[str, Any]:
    """What one export took, measured in this process."""
    import onnxruntime
    import torch
    import transformers

    import vlm_edge.families.loading
    import vlm_edge.stages.export_composed
    import vlm_edge.stages.export_graph  # noqa: F401
    from vlm_edge.core.artifact import Artifact, ArtifactKind
    from vlm_edge.core.stage import StageInputs, StageWork
    from vlm_edge.stages.export import ExportConfig, run

    libraries = peak_mb()
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as scratch:
        work = StageWork(out=Path(scratch) / "out", scratch=Path(scratch) / "scratch")
        work.out.mkdir()
        start = time.perf_counter()
        run(ExportConfig(), StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, checkpoint)), work)
        return {
            "seconds": time.perf_counter() - start,
            "libraries_mb": libraries,
            "peak_mb": peak_mb(),
            "graphs_mb": {path.name: path.stat().st_size / 1e6 for path in sorted(work.out.glob("*.onnx*"))},
            "max_relative_error": {name: parity["max_relative_error"] for name, parity in work.facts["parity"].items()},
            "composed": work.facts["composed"],
            "tokens": work.facts["tokens"],
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__}
            | {"onnxruntime": onnxruntime.__version__},
        }


def measured(name: str, folder: Path) -> dict[str, Any]:
    """One model's row: its export in a new process, after another has written its weights where there are none."""
    if not list(folder.glob("*.safetensors")):
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, name, "--write", str(folder)], check=True, capture_output=True)
    command = [sys.executable, __file__, "--export", str(folder)]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{name}: the export failed\n{process.stderr[-2000:]}")
    row: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    return {"model": name, "checkpoint_mb": size, "ratio": row["peak_mb"] / size} | row


def missed(row: dict[str, Any]) -> list[str]:
    """Which bars one model misses."""
    bars = {
        f"peak memory above {LARGEST_RATIO} x checkpoint": row["ratio"] > LARGEST_RATIO,
        f"a component off by more than {LARGEST_ERROR:.0e}": max(row["max_relative_error"].values()) > LARGEST_ERROR,
        "the graphs together off": row["composed"].get("max_relative_error", 0.0) > LARGEST_ERROR,
        "an answer that differs": row["composed"].get("ties", 0) > 0,
    }
    return [bar for bar, is_missed in bars.items() if is_missed]


def in_words(row: dict[str, Any]) -> str:
    """A line of the table."""
    errors = ", ".join(f"{name} {error:.1e}" for name, error in row["max_relative_error"].items())
    composed = row["composed"]
    together = (
        f"{composed['questions_equal']} answers, {row['tokens']} tokens"
        if row["tokens"]
        else f"within {composed['max_relative_error']:.1e}"
    )
    return (
        f"| {row['model']} | {row['checkpoint_mb']:.0f} | {row['libraries_mb']:.0f} | {row['peak_mb']:.0f} "
        f"| {row['ratio']:.2f} | {row['seconds']:.0f} | {errors} | {together} | {'; '.join(missed(row)) or 'met'} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="default: all")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "vlm-edge-export-memory")
    parser.add_argument("--json", type=Path, help="write every row there")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        MODELS[arguments.models[0]](arguments.write)
        return 0
    if arguments.export:
        print(json.dumps(export(arguments.export)))
        return 0
    print("| model | checkpoint MB | libraries MB | peak MB | ratio | s | largest relative error | together | bars |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- | --- | --- |")
    rows = []
    for name in arguments.models or MODELS:
        rows.append(measured(name, arguments.folder / name))
        print(in_words(rows[-1]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(missed(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
