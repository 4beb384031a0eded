"""One whole path: a checkpoint, exported, evaluated; its answers are those of transformers' own generate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vlm_edge.core.stage import TaskSpec
from vlm_edge.evaluation.accuracy import compare, evaluate
from vlm_edge.processing.manifest import read_manifest

QUESTIONS = [
    "what color is the shape?",
    "is there a red circle?",
    "what is it?",
    "is a blue shape present in the image?",
]


@pytest.fixture
def task(tmp_path):
    part = tmp_path / "data" / "test"
    part.mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(6):
        pixels = generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(part / f"{number}.png")
        rows += [{"file_name": f"{number}.png", "question": text, "answer": "red"} for text in QUESTIONS]
    (part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = {"name": "noise", "kind": "vqa", "source": {"folder": "data"}, "licence": "CC0"}
    (tmp_path / "data.yaml").write_text(json.dumps({**manifest, "splits": {"test": {"from": "test"}}}))
    return TaskSpec(kind="vqa", data=tmp_path / "data.yaml")


def generated(checkpoint, task, max_new_tokens):
    """Answers of transformers, one question at a time."""
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, BlipForQuestionAnswering

    model = BlipForQuestionAnswering.from_pretrained(checkpoint).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(checkpoint), AutoImageProcessor.from_pretrained(checkpoint)
    answers = []
    for line in (task.data.parent / "data" / "test" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        with Image.open(task.data.parent / "data" / "test" / row["file_name"]) as image:
            pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        text = tokenizer(row["question"], return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(
                input_ids=text["input_ids"], attention_mask=text["attention_mask"], pixel_values=pixels,
                do_sample=False, num_beams=1, max_new_tokens=max_new_tokens,
            )  # fmt: skip
        answers.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return answers


def test_an_exported_checkpoint_answers_as_transformers_does(tiny_blip, tiny_blip_graphs, task):
    outcomes = evaluate(tiny_blip_graphs.folder, task, threads=1)
    limit = read_manifest(tiny_blip_graphs.folder).generation.max_new_tokens
    assert list(outcomes.predictions) == generated(tiny_blip, task, limit)
    assert len(set(outcomes.predictions)) > 1
    assert compare(outcomes, outcomes)[1].high == 0
