"""Zero-shot classification: places in the ranking against numpy, prompts averaged, broken engines."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_graphs import IMAGE, random_images, save_image, write_dual_encoder

from vlm_edge.core.stage import SilentProgress, TaskSpec
from vlm_edge.data import load_dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import evaluate
from vlm_edge.evaluation.tasks.classification import run
from vlm_edge.runtime import EmbeddingPipeline, load_pipeline

LABELS = ["red", "green", "blue", "yes", "no", "what", "color"]
PROMPTS = ["is it {}", "{}"]


@pytest.fixture
def task(tmp_path):
    part = tmp_path / "data" / "test"
    part.mkdir(parents=True)
    rows = []
    for number, image in enumerate(random_images(35, seed=4)):
        save_image(part / f"{number}.png", image)
        rows.append({"file_name": f"{number}.png", "label": LABELS[number % 7]})
    (part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {"name": "toy", "kind": "classification", "source": {"folder": "data"}, "licence": "CC0"}
    content |= {"labels": LABELS, "prompts": PROMPTS, "splits": {"test": {"from": "test"}}}
    (tmp_path / "data.yaml").write_text(json.dumps(content))
    return TaskSpec(kind="classification", data=tmp_path / "data.yaml")


def test_top_1_and_top_5_of_the_ensembled_prompts(task, tmp_path):
    write_dual_encoder(tmp_path / "engine")
    outcomes = evaluate(tmp_path / "engine", task, threads=1)
    pipeline = load_pipeline(tmp_path / "engine", threads=1)
    images = pipeline.embed_images(random_images(35, seed=4))
    texts = np.stack([pipeline.embed_texts([prompt.format(label) for prompt in PROMPTS]).mean(0) for label in LABELS])
    similar = images @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T
    ranking = np.argsort(-similar, axis=1)
    right = np.arange(35) % 7
    assert outcomes.scores["accuracy"] == tuple((ranking[:, 0] == right).astype(float))
    assert outcomes.scores["top5"] == tuple((ranking[:, :5] == right[:, None]).any(axis=1).astype(float))
    assert outcomes.predictions == tuple(LABELS[row] for row in ranking[:, 0])
    assert 0 < sum(outcomes.scores["accuracy"]) < sum(outcomes.scores["top5"]) < 35
    np.testing.assert_array_equal(outcomes.embeddings.image.array(), images)
    assert outcomes.embeddings.text_rows == tuple((row,) for row in right)


def test_an_engine_that_gives_no_numbers_is_never_right(task):
    class Broken:
        manifest = SimpleNamespace(image=IMAGE)
        capabilities = frozenset({"embeds", "classifies"})

        def embed_images(self, images):
            return np.full((len(images), 3), np.nan, np.float32)

        def label_embeddings(self, labels, prompts):
            return np.eye(len(labels), 3, dtype=np.float32)

    rows = run(Broken(), load_dataset(task.data, "test"), SilentProgress())
    assert set(rows.scores["accuracy"]) == set(rows.scores["top5"]) == {0.0}


class Head(EmbeddingPipeline):
    """A vision tower whose class head sees the mean colour."""

    def __init__(self, labels):
        self.manifest = SimpleNamespace(labels=labels, image=IMAGE)

    def classify(self, images, *, batch_size=16):
        weights = np.random.default_rng(0).normal(size=(3, len(self.manifest.labels)))
        return np.array([image.mean((0, 1)) @ weights for image in images], np.float32)


def test_a_class_head_answers_with_any_of_its_classes(task):
    labels = ("car", *reversed(LABELS))  # the data set's, in another order, and one that it does not have
    pipeline = Head(labels)
    rows = run(pipeline, load_dataset(task.data, "test"), SilentProgress())
    likely = pipeline.classify(random_images(35, seed=4)).argmax(axis=1)
    assert rows.predictions == [labels[row] for row in likely]
    assert rows.scores["accuracy"] == [float(labels[row] == LABELS[n % 7]) for n, row in enumerate(likely)]
    assert 0 < sum(rows.scores["accuracy"]) < 35


def test_a_class_that_the_head_lacks_is_named(task):
    with pytest.raises(VlmEdgeError, match="the model has no class blue, yes; it has: no, what, color, red, green"):
        run(Head(("no", "what", "color", "red", "green")), load_dataset(task.data, "test"), SilentProgress())
    with pytest.raises(VlmEdgeError, match="it has: none"):
        run(Head(None), load_dataset(task.data, "test"), SilentProgress())
