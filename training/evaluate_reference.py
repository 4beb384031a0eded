"""Scores a reference model on a test split that no training reads, easy-VQA's or a manifest's, and prints JSON.

blip: every question goes through the ordinary path (processor, generate, batch_decode).  clip: zero-shot
classification of the images whose shape and colour their questions tell, over the 24 prompts "a {color} {shape}".
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, BlipForQuestionAnswering, BlipProcessor, CLIPModel, CLIPProcessor

from training.easyvqa import Split, infer_labels, load_split, question_type
from training.render import COLOR_NAMES, SHAPES
from vlm_edge.data import load_dataset


def wilson_interval(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% Wilson score interval of the proportion right / count."""
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half


def summarize(hits: Iterable[bool]) -> dict[str, Any]:
    """Accuracy with its sample size and interval."""
    results = list(hits)
    right, count = sum(results), len(results)
    low, high = wilson_interval(right, count)
    return {
        "n": count,
        "right": right,
        "accuracy": round(right / count, 5),
        "wilson95": [round(low, 5), round(high, 5)],
    }


def summarize_groups(outcomes: Iterable[tuple[str, bool]]) -> dict[str, dict[str, Any]]:
    """One summary per group name."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for name, hit in outcomes:
        groups[name].append(hit)
    return {name: summarize(hits) for name, hits in sorted(groups.items())}


def load_manifest(path: Path, *, blank: bool) -> tuple[Split, list[str]]:
    """A manifest's test split with the kind of each question; blank images are grey all over."""
    samples = load_dataset(path, "test").samples
    position = {image: index for index, image in enumerate(dict.fromkeys(sample.image for sample in samples))}
    images = np.stack([np.asarray(Image.open(image).convert("RGB")) for image in position])
    if blank:
        images = np.full_like(images, 127)
    questions = [(position[sample.image], sample.text, sample.answers[0]) for sample in samples]
    return Split(images, questions), [sample.slices[0] for sample in samples]


def evaluate_blip(folder: Path, test: Split, kinds: list[str], batch: int) -> dict[str, Any]:
    """Scores visual question answering through generate."""
    model = BlipForQuestionAnswering.from_pretrained(folder).eval()
    processor = BlipProcessor.from_pretrained(folder)
    outcomes: list[tuple[str, bool]] = []
    for start in range(0, len(test.questions), batch):
        part = test.questions[start : start + batch]
        inputs = processor(
            images=[test.images[image] for image, _, _ in part],
            text=[question for _, question, _ in part],
            padding=True,
            return_tensors="pt",
        )
        texts = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        outcomes += [(answer, text == answer) for text, (_, _, answer) in zip(texts, part, strict=True)]
    return {
        "task": "visual question answering",
        "all": summarize(hit for _, hit in outcomes),
        "by_question_type": summarize_groups((kind, hit) for kind, (_, hit) in zip(kinds, outcomes, strict=True)),
        "by_answer": summarize_groups(outcomes),
    }


@torch.no_grad()
def evaluate_clip(folder: Path, test: Split, batch: int) -> dict[str, Any]:
    """Scores zero-shot classification over the 24 prompts."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    names = [f"{color} {shape}" for shape in SHAPES for color in COLOR_NAMES]
    shapes, colors = infer_labels(test)
    known = [i for i in range(len(test.images)) if shapes[i] >= 0 and colors[i] >= 0]
    outcomes: list[tuple[str, bool]] = []
    for start in range(0, len(known), batch):
        part = known[start : start + batch]
        inputs = processor(
            images=[test.images[i] for i in part],
            text=[f"a {name}" for name in names],
            padding=True,
            return_tensors="pt",
        )
        guesses = model(**inputs).logits_per_image.argmax(dim=-1).tolist()
        wanted = [names[int(shapes[i]) * len(COLOR_NAMES) + int(colors[i])] for i in part]
        outcomes += [(name, names[guess] == name) for name, guess in zip(wanted, guesses, strict=True)]
    return {
        "task": "zero-shot classification over 24 prompts",
        "all": summarize(hit for _, hit in outcomes),
        "by_shape": summarize_groups((name.split()[1], hit) for name, hit in outcomes),
        "by_color": summarize_groups((name.split()[0], hit) for name, hit in outcomes),
    }


def main() -> None:
    """Command line: scores one model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Hugging Face folder of a BLIP or CLIP reference model")
    parser.add_argument("--data", type=Path, help="a manifest of visual question answering, instead of easy-VQA")
    parser.add_argument("--blank", action="store_true", help="with --data: show grey images in place of its own")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.monotonic()
    if AutoConfig.from_pretrained(arguments.folder).model_type == "clip":
        result = evaluate_clip(arguments.folder, load_split("test"), arguments.batch)
    elif arguments.data is None:
        test = load_split("test")
        kinds = [question_type(answer) for _, _, answer in test.questions]
        result = evaluate_blip(arguments.folder, test, kinds, arguments.batch)
    else:
        loaded = load_manifest(arguments.data, blank=arguments.blank)
        result = evaluate_blip(arguments.folder, *loaded, arguments.batch)
    result["seconds"] = round(time.monotonic() - start, 1)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
