"""Retrieval by a model that judges pairs: which pairs are judged, and what the ranking is then."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_graphs import IMAGE

from vlm_edge.core.stage import SilentProgress
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.evaluation.tasks import tasks_of, tasks_of_kind
from vlm_edge.evaluation.tasks.retrieval import chosen_pairs, pair_scores, run


class Judge:
    """Stands in for a pipeline: judges pairs by a matrix (images, texts), and embeds by two others."""

    def __init__(self, logits, images=None, texts=None):
        self.logits, self.images, self.texts = np.float32(logits), images, texts
        self.asked = set()
        self.manifest = SimpleNamespace(image=IMAGE)
        self.tokenizer = SimpleNamespace(count_too_long=[].count)
        self.capabilities = frozenset({"scores"} if images is None else {"scores", "embeds"})

    def encode_images(self, images, *, batch_size=16):
        return np.array([[[np.asarray(Image.open(image))[0, 0, 0]]] for image in images], np.float32)

    def match_logits(self, features, texts, *, batch_size=64, cut=False):
        assert cut
        assert features.shape == (1, 1, 1)
        image, columns = int(features[0, 0, 0]), [int(text) for text in texts]
        self.asked |= {(image, column) for column in columns}
        return self.logits[image, columns]

    def embed_images(self, images, *, batch_size=16):
        return np.float32([self.images[int(np.asarray(image)[0, 0, 0])] for image in images])

    def embed_texts(self, texts, *, batch_size=64, cut=False):
        return np.float32([self.texts[int(text)] for text in texts])


@pytest.fixture
def dataset(tmp_path):
    """Five images that are all 0, 1, .., and each its own caption, which is the number."""
    samples = []
    for number in range(5):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
        samples.append(Sample(f"s{number}", tmp_path / f"{number}.png", str(number), (str(number),)))
    return Dataset("toy", "retrieval", "test", tuple(samples), "digest")


def test_without_embeddings_every_pair_is_judged(dataset):
    logits = np.random.default_rng(0).normal(size=(5, 5))
    judge = Judge(logits)
    rows = run(judge, dataset, SilentProgress())
    assert len(judge.asked) == 25
    order = np.argsort(-logits, axis=1)
    assert list(rows.predictions) == [str(column) for column in order[:, 0]]
    assert rows.scores["recall_at_1[image-to-text]"] == [float(order[row, 0] == row) for row in range(5)]
    back = np.argsort(-logits, axis=0)
    assert rows.scores["recall_at_1[text-to-image]"] == [float(back[0, row] == row) for row in range(5)]
    assert rows.embeddings is None


def test_probabilities_that_round_to_one_are_still_told_apart(dataset):
    logits = 40 + np.eye(5)
    assert run(Judge(logits), dataset, SilentProgress()).scores["accuracy"] == [1.0] * 5


def test_embeddings_choose_and_the_fusion_ranks(dataset):
    generator = np.random.default_rng(1)
    images, texts = generator.normal(size=(5, 3)), generator.normal(size=(5, 3))
    logits = generator.normal(size=(5, 5))
    judge = Judge(logits, images, texts)
    cosines = np.float32(images) @ np.float32(texts).T
    paths = [sample.image for sample in dataset.samples]
    scores = pair_scores(judge, paths, list("01234"), cosines, SilentProgress(), candidates=2)
    expected = {(row, column) for row in range(5) for column in np.argsort(-cosines[row])[:2]}
    expected |= {(row, column) for column in range(5) for row in np.argsort(-cosines[:, column])[:2]}
    assert judge.asked == expected
    for pair in np.ndindex(5, 5):
        judged = np.float32(logits[pair]) + cosines[pair]
        assert scores[pair] == (pytest.approx(judged) if pair in expected else np.finfo(np.float32).min)
    rows = run(judge, dataset, SilentProgress())
    assert len(judge.asked) == 25  # five candidates are all there are
    best = (np.float32(logits) + cosines).argmax(axis=1)
    assert list(rows.predictions) == [str(column) for column in best]
    np.testing.assert_array_equal(rows.embeddings.image.array(), np.float32(images))


def test_as_many_candidates_as_there_are_at_most():
    assert chosen_pairs(None, 2, 3, 1).all()
    chosen = chosen_pairs(np.float32([[0.9, 0.1, 0.5], [0.2, 0.3, 0.1]]), 2, 3, 1)
    assert chosen.tolist() == [[True, False, True], [False, True, False]]
    assert chosen_pairs(np.zeros((2, 3), np.float32), 2, 3, 10).all()


def test_the_table_takes_such_a_pipeline():
    assert tasks_of_kind("matching") == tasks_of(Judge(np.eye(2))) == ["retrieval"]
