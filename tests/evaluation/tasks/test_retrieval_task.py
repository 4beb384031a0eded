"""Retrieval against a brute-force ranking, its ties, and captions that several images share."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_graphs import IMAGE, random_images, save_image, write_dual_encoder

from vlm_edge.core.stage import SilentProgress, TaskSpec
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import evaluate
from vlm_edge.evaluation.tasks.base import Query
from vlm_edge.evaluation.tasks.retrieval import answer, ranks, run, sharing_captions
from vlm_edge.runtime import load_pipeline

WORDS = ["what", "color", "is", "it", "red", "blue", "no", "yes", "green"]


class Embedder:
    """Stands in for a pipeline: gives the embeddings that it was made with."""

    capabilities = frozenset({"embeds"})

    def __init__(self, images, texts):
        self.images, self.texts = images, texts
        self.manifest = SimpleNamespace(image=IMAGE)
        self.tokenizer = SimpleNamespace(count_too_long=lambda texts: sum(len(text) > 9 for text in texts), longest=9)

    def embed_images(self, images):
        return np.array([self.images[int(image[0, 0, 0])] for image in images], np.float32)

    def embed_texts(self, texts, *, cut=False):
        return np.array([self.texts[text] for text in texts], np.float32)


def dataset(folder, captions):
    """Image number i is all i, and has ``captions[i]``."""
    samples = []
    for number, own in enumerate(captions):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number}.png")
        samples.append(Sample(f"s{number}", folder / f"{number}.png", own[0], tuple(own)))
    return Dataset("toy", "retrieval", "test", tuple(samples), "digest")


def brute_force_rank(similar, right):
    """Positions in a list sorted by similarity, wrong before right where they are equal."""
    order = sorted(range(len(similar)), key=lambda row: (-similar[row], row in right))
    return next(place for place, row in enumerate(order) if row in right)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(2, 15))
def test_ranks_are_those_of_a_sorted_list_with_ties(seed, count, size):
    generator = np.random.default_rng(seed)
    queries = generator.integers(-1, 2, (count, 3)).astype(np.float32)  # whole numbers: many ties
    gallery = generator.integers(-1, 2, (size, 3)).astype(np.float32)
    right = [sorted(generator.choice(size, generator.integers(1, size), replace=False)) for _ in range(count)]
    found, first = ranks(queries, gallery, right)
    similar = (queries @ gallery.T).tolist()
    assert found.tolist() == [brute_force_rank(row, set(own)) for row, own in zip(similar, right, strict=True)]
    assert first.tolist() == [row.index(max(row)) for row in similar]


def test_every_recall_is_a_count_over_the_ranking(tmp_path):
    """The whole task on real (tiny) graphs: 14 images, 1 to 3 captions each, none twice."""
    part = tmp_path / "data" / "test"
    part.mkdir(parents=True)
    write_dual_encoder(tmp_path / "engine")
    generator = np.random.default_rng(5)
    pairs = [f"{first} {second}" for first in WORDS for second in WORDS if first < second]
    texts = list(generator.permutation(pairs))[:28]  # the encoder adds words up, so their order makes no difference
    captions = [[texts.pop() for _ in range(1 + number % 3)] for number in range(14)]
    rows = [
        {"file_name": f"{number}.png", "captions": own, "slice": f"n{len(own)}"} for number, own in enumerate(captions)
    ]
    pixels = random_images(14, seed=2)
    for number, image in enumerate(pixels):
        save_image(part / f"{number}.png", image)
    (part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {"name": "toy", "kind": "retrieval", "source": {"folder": "data"}, "licence": "CC0"}
    (tmp_path / "data.yaml").write_text(json.dumps({**content, "splits": {"test": {"from": "test"}}}))
    outcomes = evaluate(tmp_path / "engine", TaskSpec(kind="retrieval", data=tmp_path / "data.yaml"), threads=1)

    pipeline = load_pipeline(tmp_path / "engine", threads=1)
    everything = [caption for own in captions for caption in own]
    similar = pipeline.embed_images(pixels) @ pipeline.embed_texts(everything).T
    owner = [number for number, own in enumerate(captions) for _ in own]
    for cutoff in (1, 5, 10):
        image_hits = [
            any(owner[row] == number for row in np.argsort(-similar[number])[:cutoff]) for number in range(14)
        ]
        text_hits = [owner[row] in np.argsort(-similar[:, row])[:cutoff] for row in range(len(everything))]
        assert outcomes.scores[f"recall_at_{cutoff}[image-to-text]"] == tuple(map(float, image_hits))
        shares = outcomes.scores[f"recall_at_{cutoff}[text-to-image]"]
        for number, own in enumerate(captions):
            hits = [hit for hit, of in zip(text_hits, owner, strict=True) if of == number]
            assert shares[number] == pytest.approx(sum(hits) / len(own))
    both = [outcomes.scores[f"recall_at_1[{way}]"] for way in ("image-to-text", "text-to-image")]
    assert outcomes.scores["accuracy"] == pytest.approx(np.mean(both, axis=0))
    assert outcomes.predictions == tuple(everything[row] for row in similar.argmax(axis=1))
    assert len(set(outcomes.groups)) == 14
    assert 0 < np.mean(both) < 1
    assert outcomes.embeddings.text.rows == len(everything)
    assert outcomes.embeddings.text_rows[1] == (1, 2)
    assert answer(pipeline, Query(pixels[3], everything[5])) == pytest.approx(similar[3, 5], abs=1e-6)


def test_a_caption_of_several_images_is_right_for_each(tmp_path):
    captions = [["a dog", "a pet"], ["a dog"], ["a cat", "a pet"], ["a car"]]
    axes = np.eye(4)
    texts = {"a dog": axes[0], "a pet": axes[1], "a cat": axes[2], "a car": axes[3]}
    images = [axes[0] * 0.9, axes[0], axes[2], axes[3]]  # the second image is nearest to "a dog", which both have
    rows = run(Embedder(images, texts), dataset(tmp_path, captions), SilentProgress())
    assert rows.scores["recall_at_1[image-to-text]"] == [1, 1, 1, 1]
    assert rows.scores["recall_at_1[text-to-image]"] == [0.5, 1, 0.5, 1]  # "a pet" is like no image: all tie at 0
    assert rows.groups == ["s0", "s0", "s0", "s3"]


def test_an_encoder_that_makes_everything_alike_finds_nothing(tmp_path):
    captions = [[f"caption {number}"] for number in range(12)]
    texts = {own[0]: np.array([1.0, 0.0]) for own in captions}
    rows = run(Embedder([np.array([1.0, 0.0])] * 12, texts), dataset(tmp_path, captions), SilentProgress())
    assert set(rows.scores["accuracy"]) == {0.0}
    assert set(rows.scores["recall_at_10[image-to-text]"]) == {0.0}
    said = "2 of 12 captions have more than the 9 tokens that the model reads; their ends were left out"
    assert rows.notes == (said,)  # "caption 10" and "caption 11": the double counts characters


def test_what_is_not_a_number_is_not_found(tmp_path):
    captions = [["a"], ["b"], ["c"]]
    texts = {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 1.0]), "c": np.array([-1.0, 0.0])}
    images = [np.array([1.0, 0.0]), np.array([np.nan, np.nan]), np.array([-1.0, 0.0])]
    rows = run(Embedder(images, texts), dataset(tmp_path, captions), SilentProgress())
    assert rows.scores["recall_at_1[image-to-text]"] == [1, 0, 1]
    assert rows.scores["recall_at_1[text-to-image]"] == [0, 0, 0]


def test_one_image_is_nothing_to_rank(tmp_path):
    with pytest.raises(VlmEdgeError, match="1 images and 2 captions leave nothing to rank"):
        run(Embedder([np.ones(2)], {}), dataset(tmp_path, [["a", "b"]]), SilentProgress())


def test_groups_join_through_other_images(tmp_path):
    samples = dataset(tmp_path, [["a"], ["b"], ["c"], ["b", "c"], ["a", "d"]]).samples
    assert sharing_captions(samples) == ["s0", "s1", "s1", "s1", "s0"]
