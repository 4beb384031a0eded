"""A tiny VQA data set on disk: plain images, and questions about their colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_edge.core.stage import TaskSpec

COLORS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (40, 40, 210)}
MANIFEST = """\
name: colors
kind: vqa
source: {folder: data}
licence: MIT
splits:
  calibration: {from: train, samples: 8, seed: 1}
  train: {from: train}
"""


def write_color_task(folder: Path, images: int = 12) -> TaskSpec:
    """Images 0.png, 1.png ... of 24x20 pixels, each with two questions, and every odd one with a third, longer one."""
    part = folder / "data" / "train"
    part.mkdir(parents=True)
    rows = []
    for number in range(images):
        color = list(COLORS)[number % 3]
        pixels = np.full((20, 24, 3), COLORS[color], dtype=np.uint8)
        pixels[number % 20] = 10 * number % 256
        Image.fromarray(pixels).save(part / f"{number}.png")
        questions = [("what color is it", color), ("is it red", "yes" if color == "red" else "no")]
        if number % 2:
            questions.append(("is there a blue shape in the image", "yes" if color == "blue" else "no"))
        rows += [{"file_name": f"{number}.png", "question": text, "answer": answer} for text, answer in questions]
    (part / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "colors.yaml").write_text(MANIFEST)
    return TaskSpec(kind="vqa", data=folder / "colors.yaml")
