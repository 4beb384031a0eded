"""Splits: what is drawn, that it is disjoint and repeatable, and what changes the digest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import easy_vqa
import pytest
from PIL import Image

from vlm_edge.data import dataset_digest, load_dataset
from vlm_edge.data.dataset import Sample
from vlm_edge.data.easy_vqa import COLORS, SHAPES, implied_attributes
from vlm_edge.data.loading import draw_stratified
from vlm_edge.errors import VlmEdgeError

ROOT = Path(__file__).parents[2]
EASY_VQA = ROOT / "calibration" / "easy-vqa.yaml"
ZERO_SHOT = ROOT / "calibration" / "easy-vqa-zero-shot.yaml"
RETRIEVAL = ROOT / "calibration" / "easy-vqa-retrieval.yaml"


def rows(images=40, questions=2):
    """Questions of which one in ten is answered "rare"."""
    return [
        {"file_name": f"{image}.png", "question": f"q{ask}?", "answer": "rare" if image % 10 == 0 else "common"}
        for image in range(images)
        for ask in range(questions)
    ]


class TestEasyVqa:
    def test_the_test_split_is_the_packages(self):
        questions, answers, numbers = easy_vqa.get_test_questions()
        paths = easy_vqa.get_test_image_paths()
        data = load_dataset(EASY_VQA, "test")
        ours = {(str(s.image), s.text, s.answers) for s in data.samples}
        theirs = {(str(Path(paths[n])), q, (a,)) for q, a, n in zip(questions, answers, numbers, strict=True)}
        assert len(data.samples) == len(questions) == 9673
        assert ours == theirs
        assert len({sample.id for sample in data.samples}) == 9673

    def test_slices_follow_the_answer(self):
        expected = {**dict.fromkeys(COLORS, "color"), **dict.fromkeys(SHAPES, "shape"), "yes": "yes/no", "no": "yes/no"}
        assert set(expected) == set(easy_vqa.get_answers())
        assert all(s.slices == (expected[s.answers[0]],) for s in load_dataset(EASY_VQA, "test").samples)

    def test_calibration_is_stratified_and_from_the_training_images(self):
        calibration = load_dataset(EASY_VQA, "calibration")
        train = load_dataset(EASY_VQA, "train")
        assert len(calibration.samples) == 256
        assert len({sample.image for sample in calibration.samples}) == 256
        assert {sample.id for sample in calibration.samples} <= {sample.id for sample in train.samples}
        drawn = Counter(sample.answers[0] for sample in calibration.samples)
        whole = Counter(sample.answers[0] for sample in train.samples)
        for answer, count in whole.items():
            assert drawn[answer] == pytest.approx(256 * count / len(train.samples), abs=1)

    def test_classes_are_what_the_pixels_show(self):
        """The second most common colour of an image is its shape's, and each has one name."""
        data = load_dataset(ZERO_SHOT, "test")
        assert len(data.samples) == 880
        colors: dict[str, set[tuple[int, ...]]] = {}
        for sample in data.samples[:200]:
            with Image.open(sample.image) as image:
                counts = sorted(image.convert("RGB").getcolors(4096), reverse=True)
            background, ink = counts[0][1], counts[1][1]
            assert min(background) > 220
            colors.setdefault(sample.answers[0].split()[0], set()).add(tuple(round(c / 64) for c in ink))
        assert len(colors) == 8
        assert len(set().union(*colors.values())) == sum(map(len, colors.values())), "a colour has two names"

    def test_captions_are_made_of_the_class(self):
        data, classes = load_dataset(RETRIEVAL, "test"), load_dataset(ZERO_SHOT, "test")
        assert [sample.id for sample in data.samples] == [sample.id for sample in classes.samples]
        names = [sample.answers[0] for sample in classes.samples]
        assert [s.answers for s in data.samples] == [(f"a {name}", f"an image of a {name}") for name in names]

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ([("what is the red shape?", "circle")], ("red", "circle")),
            ([("is there not a blue shape?", "no"), ("is a triangle present?", "yes")], ("blue", "triangle")),
            ([("is there a red shape?", "no"), ("is no circle present?", "yes")], (None, None)),
            ([("what color is the shape?", "teal")], ("teal", None)),
            ([("is a red shape present?", "yes"), ("what color is the shape?", "blue")], (None, None)),
        ],
    )
    def test_attributes_are_only_those_that_answers_tell(self, asked, expected):
        assert implied_attributes(asked) == expected


class TestDraws:
    @pytest.fixture
    def manifest(self, write_folder, write_manifest):
        write_folder(rows(), part="all", images=40)
        splits = {
            "calibration": {"from": "all", "samples": 20, "seed": 1},
            "train": {"from": "all"},
            "test": {"from": "all", "samples": 30, "seed": 2},
        }
        return write_manifest(splits=splits)

    def test_no_test_image_is_drawn_for_anything_else(self, manifest):
        images = {split: {s.image for s in load_dataset(manifest, split).samples} for split in ("test", "train")}
        calibration = {s.image for s in load_dataset(manifest, "calibration").samples}
        assert len(images["test"]) == 15
        assert len(images["train"]) == 25
        assert calibration <= images["train"]

    def test_every_answer_is_in_the_calibration(self, manifest):
        for limit in (2, 5, None):
            data = load_dataset(manifest, "calibration", limit=limit)
            assert len(data.samples) == (limit or 20)
            assert {s.answers[0] for s in data.samples} == {"rare", "common"}

    def test_a_limit_takes_whole_images_and_nests(self, manifest):
        small, large = (load_dataset(manifest, "test", limit=limit) for limit in (10, 20))
        assert len(small.samples) == 10
        assert {s.id for s in small.samples} <= {s.id for s in large.samples}
        assert set(Counter(s.image for s in small.samples).values()) == {2}
        assert load_dataset(manifest, "test", limit=500).samples == load_dataset(manifest, "test").samples

    def test_the_same_draw_twice(self, manifest):
        assert load_dataset(manifest, "calibration") == load_dataset(manifest, "calibration")
        other = manifest.read_text().replace('"seed": 1', '"seed": 5')
        before = load_dataset(manifest, "calibration")
        manifest.write_text(other)
        after = load_dataset(manifest, "calibration")
        assert before.samples != after.samples
        assert before.digest != after.digest


class TestDigest:
    @pytest.fixture
    def folder(self, write_folder):
        return write_folder(rows(4), images=4)

    def test_it_changes_with_the_content_alone(self, folder, write_manifest):
        first = dataset_digest(write_manifest(), "test")
        assert first == dataset_digest(write_manifest(description="in other words"), "test")
        assert first == load_dataset(write_manifest(), "test").digest
        (folder / ".DS_Store").write_text("noise")
        assert first == dataset_digest(write_manifest(), "test")
        assert first != load_dataset(write_manifest(), "test", limit=2).digest
        (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
        assert first != dataset_digest(write_manifest(), "test")

    def test_it_is_the_same_with_and_without_a_memory(self, folder, write_manifest, monkeypatch, tmp_path):
        monkeypatch.setattr("vlm_edge.digests.RECENT_NS", -1)
        first = dataset_digest(write_manifest(), "test")
        remembered = list((tmp_path / "cache" / "vlm-edge" / "digests").iterdir())
        assert len(remembered) == 1
        remembered[0].write_text("{ half a rec")
        assert dataset_digest(write_manifest(), "test") == first
        (tmp_path / "a-file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
        assert dataset_digest(write_manifest(), "test") == first

    def test_a_known_listing_is_not_hashed_again(self, folder, write_manifest, monkeypatch):
        monkeypatch.setattr("vlm_edge.digests.RECENT_NS", -1)
        first = dataset_digest(write_manifest(), "test")
        monkeypatch.setattr("vlm_edge.digests.hashlib.file_digest", lambda *_: pytest.fail("hashed again"))
        assert dataset_digest(write_manifest(), "test") == first

    def test_another_content_than_the_manifests_is_refused(self, folder, write_manifest):
        with pytest.raises(VlmEdgeError, match=r"digests\.test: the content of .* not 0123") as caught:
            load_dataset(write_manifest(digests={"test": "0123"}), "test")
        assert "write the new digest" in (caught.value.hint or "")


class TestRefusals:
    def test_a_split_that_is_not_there(self, write_folder, write_manifest):
        write_folder(rows(2))
        with pytest.raises(VlmEdgeError, match="no split train; it has: test"):
            load_dataset(write_manifest(), "train")

    @pytest.mark.parametrize("limit", [0, -3])
    def test_a_limit_below_one(self, write_manifest, limit):
        with pytest.raises(VlmEdgeError, match="give 1 or more"):
            load_dataset(write_manifest(), "test", limit=limit)

    def test_packages(self, write_manifest, monkeypatch):
        with pytest.raises(VlmEdgeError, match="vqa2 is no known data package; known: easy-vqa"):
            load_dataset(write_manifest(source={"package": "vqa2"}), "test")
        with pytest.raises(VlmEdgeError, match=r"easy-vqa 1\.0 is installed, the manifest is for 9\.0"):
            load_dataset(write_manifest(source={"package": "easy-vqa", "version": "9.0"}), "test")
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(VlmEdgeError, match="not installed") as caught:
            load_dataset(write_manifest(source={"package": "easy-vqa"}), "test")
        assert caught.value.hint == 'pip install "vlm-edge[demo]"'


def test_captions_are_drawn_without_regard_to_the_alphabet() -> None:
    samples = [Sample(str(n), Path(f"{n}.png"), "", (f"caption {n:03}",)) for n in range(200)]
    drawn = [{sample.id for sample in draw_stratified(samples, 20, seed)} for seed in (0, 0, 1)]
    assert [len(each) for each in drawn] == [20, 20, 20]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(map(int, drawn[0] | drawn[2])) >= 100
