"""A model of more than 2 GB from checkpoint to answer: a LLaVA of 0.97 billion FP32 parameters about photographs.

    python benchmarks/large_model.py [--folder FOLDER] [--json]

Its weights are random (llava-1.5's tower before a Llama of 20 layers; the decoder's graph alone holds more than a
protobuf message can, 2 GiB). `vlm-edge export` writes and proves the graphs; the runtime answers through them about
scikit-learn's two photographs, in a process without torch; transformers' own processor and `generate` answer the same.
The decoder is then quantized to INT8 and to 4 bits, and answers again (with tokens of its own: those of random weights
turn on the last bits). Each step is a process of its own. Exits with 1 where a float token differs, no graph has more
than 2 GiB beside it, the export takes more than 2.5 times the checkpoint's size in memory, or a quantized decoder isn't
written or answers nothing. Needs 14 GB of disk, which are freed at the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NEW_TOKENS = 32
LARGEST_RATIO = 2.5
PROTOBUF_BYTES = 2**31
SCHEMES = {"int8": "INT8", "int4-weights": "4 bits"}
DATA = Path(__file__).parents[1] / "calibration" / "easy-vqa.yaml"
QUESTIONS: dict[str, tuple[str, ...]] = {
    "What is in the picture?": ("china.jpg",),
    "Which colour is it?": ("flower.jpg",),
    "What do both have in common?": ("china.jpg", "flower.jpg"),
    "Who are you?": (),
}
"""Questions, and the photographs that each is about."""
PROMPT = "USER: {images}\n{question} ASSISTANT:"
"""Llava-1.5's, written out for transformers' processor."""


def photographs() -> Path:
    """Where scikit-learn, which nncf brings along, keeps its two."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise SystemExit("large_model.py needs scikit-learn's photographs: pip install scikit-learn")
    return Path(spec.origin).parent / "datasets" / "images"


def answer(graphs: Path) -> list[list[int]]:
    """The runtime's tokens."""
    from vlm_edge.runtime import GeneratePipeline, Request, load_pipeline

    pipeline = load_pipeline(graphs)
    assert isinstance(pipeline, GeneratePipeline)
    folder = photographs()
    rows = [
        pipeline.generate_ids([Request(question, [folder / name for name in names])], max_new_tokens=NEW_TOKENS)[0]
        for question, names in QUESTIONS.items()
    ]
    assert not {"torch", "transformers"} & sys.modules.keys()
    return rows


def generate(checkpoint: Path) -> list[list[int]]:
    """transformers' tokens, from its own processor."""
    import transformers
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(checkpoint),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    end, folder, rows = model.config.text_config.eos_token_id, photographs(), []
    for question, names in QUESTIONS.items():
        text = PROMPT.format(images="<image>" * len(names), question=question)
        images = [Image.open(folder / name).convert("RGB") for name in names] or None
        inputs = processor(images=images, text=text, return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
        row = tokens.tolist()
        rows.append(row[: row.index(end)] if end in row else row)
    return rows


def step(command: list[str]) -> dict[str, Any]:
    """A process to its end: seconds, peak resident memory in MB, and the last line that it printed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": time.perf_counter() - began,
        "peak_mb": usage.ru_maxrss * 1024 / 1e6,
        "said": lines[-1] if lines else "",
    }


def measured(folder: Path) -> dict[str, Any]:
    """Every step on a new checkpoint in ``folder``."""
    checkpoint, graphs, this = folder / "checkpoint", folder / "graphs", [sys.executable, __file__]
    step([*this, "--write", str(checkpoint)])
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    export = step([sys.executable, "-m", "vlm_edge.cli", "-q", "export", str(checkpoint), "-o", str(graphs)])
    files = {path.name: path.stat().st_size for path in sorted(graphs.glob("*.onnx*"))}
    runtime, reference = step([*this, "--answer", str(graphs)]), step([*this, "--generate", str(checkpoint)])
    quantized: dict[str, dict[str, Any]] = {}
    for scheme, name in SCHEMES.items():
        out = folder / scheme
        settings = ["samples=2", "sensitivity=none", f"components={{'*': none, decoder: {scheme}}}"]
        command = [sys.executable, "-m", "vlm_edge.cli", "-q", "quantize", str(graphs), "--data", str(DATA)]
        command += [part for setting in settings for part in ("-s", setting)]
        quantized[f"quantize to {name}"] = step([*command, "-o", str(out)])
        quantized[f"answer in {name}"] = step([*this, "--answer", str(out)])
    pairs = list(zip(json.loads(runtime["said"]), json.loads(reference["said"]), strict=True))
    return {
        "checkpoint_bytes": weights,
        "files": files,
        "steps": {
            name: {"seconds": part["seconds"], "peak_mb": part["peak_mb"]}
            for name, part in {"export": export, "runtime": runtime, "transformers": reference, **quantized}.items()
        },
        "tokens": [len(theirs) for _, theirs in pairs],
        "different_tokens": len({token for _, theirs in pairs for token in theirs}),
        "bars": {
            "a graph above 2 GiB, its weights beside it": any(
                name.endswith(".data") and size > PROTOBUF_BYTES for name, size in files.items()
            ),
            f"export within {LARGEST_RATIO} x checkpoint": export["peak_mb"] * 1e6 <= LARGEST_RATIO * weights,
            "every token as generate's": all(ours == theirs for ours, theirs in pairs),
            **{
                f"answers in {name}": all(json.loads(quantized[f"answer in {name}"]["said"]))
                for name in SCHEMES.values()
            },
            "answers differ from question to question": len({tuple(theirs) for _, theirs in pairs}) == len(pairs),
        },
    }


def print_table(result: dict[str, Any]) -> None:
    print(f"checkpoint {result['checkpoint_bytes'] / 1e6:.0f} MB")
    for name, size in result["files"].items():
        print(f"  {name:28} {size / 1e6:8.1f} MB")
    print("| step | s | peak MB | x checkpoint |")
    print("| --- | ---: | ---: | ---: |")
    for name, part in result["steps"].items():
        ratio = part["peak_mb"] * 1e6 / result["checkpoint_bytes"]
        print(f"| {name} | {part['seconds']:.0f} | {part['peak_mb']:.0f} | {ratio:.2f} |")
    print(f"{len(result['tokens'])} answers of {result['tokens']} tokens, {result['different_tokens']} different ones")
    for bar, met in result["bars"].items():
        print(f"{bar}: {'met' if met else 'MISSED'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; removed at the end but for this folder itself")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    for name in ("write", "answer", "generate"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        from _language_models import llava_0_7b

        arguments.write.mkdir()
        llava_0_7b(arguments.write)
        return 0
    if arguments.answer or arguments.generate:
        print(json.dumps(answer(arguments.answer) if arguments.answer else generate(arguments.generate)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measured(Path(folder))
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        print_table(result)
    return int(not all(result["bars"].values()))


if __name__ == "__main__":
    sys.exit(main())
