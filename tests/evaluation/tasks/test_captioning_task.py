"""A tiny captioner from checkpoint to score: CIDEr against pycocoevalcap, tokens, what can't be read, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bench import write_task
from tiny_graphs import random_images, save_image

from vlm_edge.cli.main import main
from vlm_edge.core.stage import TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import evaluate
from vlm_edge.evaluation.comparison import compare
from vlm_edge.evaluation.tasks.captioning import caption_tokens
from vlm_edge.runtime import load_pipeline

pytest.importorskip("pycocoevalcap")
IMAGES = 12


@pytest.fixture
def task(tmp_path, tiny_captioner_graphs):
    """References of which some are near to what the model says, and some say something else."""
    part = tmp_path / "data" / "test"
    part.mkdir(parents=True)
    images = random_images(IMAGES, seed=2)
    said = load_pipeline(tiny_captioner_graphs.folder, threads=1).caption_batch(images)
    rows = []
    for number, (image, text) in enumerate(zip(images, said, strict=True)):
        save_image(part / f"{number}.png", image)
        captions = [f"{text} {number % 3}", f"a picture of {number % 4} things"]
        rows.append({"file_name": f"{number}.png", "captions": captions, "slice": "few" if number < 4 else "many"})
    return write_task(tmp_path, rows, kind="captioning")


def test_the_score_is_pycocoevalcaps(task, tiny_captioner_graphs):
    from pycocoevalcap.cider.cider import Cider

    outcomes = evaluate(tiny_captioner_graphs.folder, task, threads=1)
    pipeline = load_pipeline(tiny_captioner_graphs.folder, threads=1)
    said = pipeline.caption_batch(random_images(IMAGES, seed=2))
    assert outcomes.predictions == tuple(said)
    assert outcomes.tokens == tuple(map(tuple, pipeline.caption_ids(random_images(IMAGES, seed=2))))
    lines = [json.loads(line) for line in (task.data.parent / "data/test/metadata.jsonl").read_text().splitlines()]
    truth = {row: [" ".join(caption_tokens(text)) for text in line["captions"]] for row, line in enumerate(lines)}
    mean, each = Cider().compute_score(truth, {row: [" ".join(caption_tokens(text))] for row, text in enumerate(said)})
    assert outcomes.scores["cider"] == outcomes.scores["accuracy"] == tuple(each)
    (accuracy,) = (found for found in compare(outcomes, outcomes) if found.metric == "accuracy")
    assert accuracy.value == pytest.approx(mean)
    assert accuracy.unit == "CIDEr"
    assert 0 < accuracy.low < mean < accuracy.high < 10


def test_a_prompt_begins_every_caption_and_is_no_part_of_it(task, tiny_captioner_graphs):
    manifest = json.loads(task.data.read_text()) | {"prompts": ["a picture of"]}
    task.data.write_text(json.dumps(manifest))
    outcomes = evaluate(tiny_captioner_graphs.folder, task, threads=1)
    pipeline = load_pipeline(tiny_captioner_graphs.folder, threads=1)
    begun = pipeline.caption_batch(random_images(IMAGES, seed=2), "a picture of")
    assert outcomes.predictions == tuple(begun) != tuple(pipeline.caption_batch(random_images(IMAGES, seed=2)))


def test_references_count_where_the_image_cannot_be_read(task, tiny_captioner_graphs, monkeypatch):
    whole = evaluate(tiny_captioner_graphs.folder, task, threads=1)
    monkeypatch.setattr("vlm_edge.data.dataset.MAX_UNREADABLE", 0.5)
    (task.data.parent / "data/test/3.png").write_bytes(b"no image")
    found = evaluate(tiny_captioner_graphs.folder, task, threads=1)
    assert [each.image for each in found.skipped] == ["3.png"]
    assert found.scores["cider"] == tuple(np.delete(whole.scores["cider"], 3))


def test_the_command_says_the_score_and_the_fidelity(task, tiny_captioner_graphs):
    folder = str(tiny_captioner_graphs.folder)
    done = CliRunner().invoke(main, ["evaluate", folder, "--data", str(task.data), "--baseline", folder, "--json"])
    assert done.exit_code == 0, done.output
    found = {each["metric"]: each for each in json.loads(done.stdout)["measurements"]}
    assert found["cider"]["value"] == found["accuracy"]["value"] > 0
    assert (found["cider_drop_pt"]["low"], found["cider_drop_pt"]["high"]) == (0, 0)
    assert {"cider[few]", "cider_drop_pt[many]", "cider_ratio"} <= found.keys()
    assert found["token_agreement"]["value"] == found["exact_match"]["value"] == 1


@pytest.mark.usefixtures("task")
def test_a_captioner_cannot_answer_questions(tiny_captioner_graphs, tmp_path):
    lines = [{"file_name": f"{number}.png", "question": "is it red", "answer": "yes"} for number in range(IMAGES)]
    other = write_task(tmp_path, lines, kind="vqa")
    with pytest.raises(VlmEdgeError, match="captioning"):
        evaluate(tiny_captioner_graphs.folder, TaskSpec(kind="vqa", data=other.data), threads=1)
