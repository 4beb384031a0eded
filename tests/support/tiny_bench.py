"""Tiny engines with data sets whose right answers are known, for what measures engines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tiny_graphs import WORDS, random_images, save_image, vqa_answer, write_dual_encoder, write_vqa

from vlm_edge.core.stage import TaskSpec

QUESTIONS = ["what color is it", "is it red", "is it", "what is blue no yes", "green"]


@dataclass(frozen=True)
class Bench:
    """Two VQA engines of a few ONNX nodes, and a data set whose answers are what plain numpy gives for the first."""

    engine: Path
    other: Path
    task: TaskSpec
    images: Path
    answers: dict[str, str]
    """Sample id -> answer, in the data set's order."""


def write_task(folder: Path, rows: list[dict[str, object]], **manifest: object) -> TaskSpec:
    (folder / "data" / "test" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "name": "toy",
        "kind": "vqa",
        "source": {"folder": "data"},
        "licence": "CC0",
        "splits": {"test": {"from": "test"}},
        **manifest,
    }
    (folder / "data.yaml").write_text(json.dumps(content))
    return TaskSpec(kind=str(content["kind"]), data=folder / "data.yaml")


def build_bench(folder: Path, images: int) -> Bench:
    part = folder / "data" / "test"
    part.mkdir(parents=True)
    weights = write_vqa(folder / "engine", seed=0)
    write_vqa(folder / "other", seed=1)
    rows: list[dict[str, object]] = []
    answers = {}
    for number, image in enumerate(random_images(images)):
        save_image(part / f"{number}.png", image)
        for question in QUESTIONS[number % 3 :]:
            words = [WORDS[index] for index in vqa_answer(weights, image, question) if index > 2]
            answer = " ".join(words) or "nothing"
            rows.append(
                {"file_name": f"{number}.png", "question": question, "answer": answer, "slice": f"r{number % 2}"}
            )
            answers[f"{number}.png#{len(rows)}"] = answer
    return Bench(folder / "engine", folder / "other", write_task(folder, rows), part, answers)


def build_dual_bench(folder: Path) -> Bench:
    part = folder / "data" / "test"
    part.mkdir(parents=True)
    write_dual_encoder(folder / "engine")
    labels = ["red", "green"]
    rows: list[dict[str, object]] = []
    for number, image in enumerate(random_images(20)):
        save_image(part / f"{number}.png", image)
        rows.append({"file_name": f"{number}.png", "label": labels[number % 2]})
    task = write_task(folder, rows, kind="classification", labels=labels, prompts=["is it {}", "{}"])
    return Bench(folder / "engine", folder / "engine", task, part, {})
