"""Export at real size with random weights: time, peak memory, and how far the graphs are from torch.

    python benchmarks/export_memory.py [siglip-base] [clip-vit-l-14] [florence-2-base] ...

Each export runs in a process of its own. Peak memory is VmHWM, the interpreter and its libraries included; the first
line is what these alone take. Weights are written once and kept under --folder.
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

from _language_models import blip2_opt_125m, smolvlm_256m

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
        generation | {"no_repeat_ngram_size": 3, "max_new_tokens": 8},
    )  # fmt: skip


def clip_vit_l_14(folder: Path) -> None:
    """openai/clip-vit-large-patch14."""
    from vlm_edge.zoo.create import create

    create("clip", "vit-l-14", folder)


def _write(
    folder: Path, model: Any, image: dict[str, Any], vocabulary: int, length: int, generation: dict[str, Any]
) -> None:
    from vlm_edge.zoo.create import randomize
    from vlm_edge.zoo.tokenizer import write_tokenizer

    randomize(model, 0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(folder, vocabulary, length)


MODELS = {
    "siglip-base": siglip_base,
    "clip-vit-l-14": clip_vit_l_14,
    "florence-2-base": florence_2_base,
    "smolvlm-256m": smolvlm_256m,
    "blip2-opt-125m": blip2_opt_125m,
}


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def export(checkpoint: Path) -> dict[str, Any]:
    """What one export took, measured in this process."""
    import onnxruntime
    import torch
    import transformers

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
            "graphs_mb": sum(path.stat().st_size for path in work.out.iterdir()) / 1e6,
            "worst": max(parity["max_relative_error"] for parity in work.facts["parity"].values()),
            "composed": work.facts["composed"],
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
            f"onnxruntime {onnxruntime.__version__}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="default: all")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "vlm-edge-export-memory")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.export:
        print(json.dumps(export(arguments.export)))
        return
    print("| model | checkpoint MB | libraries MB | peak MB | peak / checkpoint | graphs MB | s | worst error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in arguments.models or MODELS:
        folder = arguments.folder / name
        if not (folder / "model.safetensors").is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            MODELS[name](folder)
        command = [sys.executable, __file__, "--export", str(folder)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        size = (folder / "model.safetensors").stat().st_size / 1e6
        print(
            f"| {name} | {size:.0f} | {result['libraries_mb']:.0f} | {result['peak_mb']:.0f} "
            f"| {result['peak_mb'] / size:.2f} | {result['graphs_mb']:.0f} | {result['seconds']:.0f} "
            f"| {result['worst']:.1e} |"
        )


if __name__ == "__main__":
    main()
