"""Folders of images with ``metadata.jsonl``, in which no image is there twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROWS: dict[str, list[dict[str, Any]]] = {
    "vqa": [{"question": "is it red", "answer": "yes"}, {"question": "what color is it", "answer": "blue"}],
    "captioning": [{"captions": ["a red shape", "something red"]}, {"caption": "a blue circle"}],
    "classification": [{"label": "red"}, {"label": "blue"}],
    "retrieval": [{"captions": ["a red shape", "something red"]}, {"caption": "a blue circle"}],
    "hallucination": [
        {"question": "is there a red shape", "answer": "yes"},
        {"question": "is there a dog", "answer": "no"},
    ],
}
"""The keys of a line of each kind, beside the image's name."""
CLASSES = {"labels": ["red", "blue"], "prompts": ["a {} shape"]}


def write_part(folder: Path, rows: Sequence[dict[str, Any]], images: int, seed: int) -> None:
    """``images`` random images with a line each, the rows in turns."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (images, 12, 16, 3), dtype=np.uint8)
    lines = []
    for number in range(images):
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
        lines.append(json.dumps(rows[number % len(rows)] | {"file_name": f"{number}.png"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))


def write_photos(folder: Path, kind: str, images: int = 400) -> Path:
    """A whole data set of one kind, ``photos/`` with its manifest ``photos.yaml``, which is returned."""
    for seed, part in enumerate(("train", "test")):
        write_part(folder / "photos" / part, ROWS[kind], images if part == "test" else 12, seed)
    manifest = {
        "name": "photos",
        "kind": kind,
        "source": {"folder": "photos"},
        "licence": "CC0",
        "splits": {"calibration": {"from": "train"}, "train": {"from": "train"}, "test": {"from": "test"}},
        **(CLASSES if kind == "classification" else {}),
    }
    path = folder / "photos.yaml"
    path.write_text(json.dumps(manifest))
    return path
