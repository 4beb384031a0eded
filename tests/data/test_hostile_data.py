"""Data folders and manifests from outside give a fault with its place, or the right samples."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_edge.core.stage import SilentProgress
from vlm_edge.data import load_dataset
from vlm_edge.data.dataset import Sample
from vlm_edge.data.loading import content_digest, draw_stratified, shared_images, unreadable_images
from vlm_edge.data.manifest import read_dataset_manifest
from vlm_edge.errors import RecipeError, VlmEdgeError

ROW = {"file_name": "0.png", "question": "what?", "answer": "red"}


def refusal(manifest: Path) -> str:
    with pytest.raises(VlmEdgeError) as error:
        load_dataset(manifest, "test")
    return str(error.value)


@pytest.mark.parametrize("hidden_in", ["", "deeper"])
def test_a_link_to_nothing_is_named(write_folder, write_manifest, hidden_in):
    folder = write_folder([ROW]) / hidden_in
    folder.mkdir(exist_ok=True)
    (folder / "lost.png").symlink_to("nowhere.png")
    assert f"{folder / 'lost.png'}: can't be read: a link to what is not there" in refusal(write_manifest())


def test_a_link_to_a_folder_around_it_is_named(write_folder, write_manifest):
    folder = write_folder([ROW])
    (folder / "a").mkdir()
    (folder / "a" / "again").symlink_to(folder / "a")
    assert "a/again: can't be read: a link to a folder that it lies in" in refusal(write_manifest())


def test_a_link_to_a_file_is_read(write_folder, write_manifest):
    folder = write_folder([{**ROW, "file_name": "link.png"}])
    (folder / "link.png").symlink_to("1.png")
    assert load_dataset(write_manifest(), "test").samples[0].image == folder / "link.png"


@pytest.mark.parametrize("name", ["pipe.png", "metadata.jsonl", "captions.json"])
def test_a_pipe_is_not_waited_for(write_folder, write_manifest, name):
    folder = write_folder([ROW])
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{folder / name}: can't be read: a pipe, socket or device, no file" in refusal(
        write_manifest(kind="captioning")
    )


def test_a_name_that_is_no_utf_8_counts_by_its_bytes(write_folder, write_manifest):
    folder = write_folder([ROW])
    before = content_digest(folder)
    strange = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    strange.write_bytes(b"x")
    assert content_digest(folder) != before
    assert len(load_dataset(write_manifest(), "test").samples) == 1
    assert "surrogate" in line_fault(folder, write_manifest, '{"file_name": "\\udcff.png", "question": "?"}')


def test_a_line_end_in_a_name_does_not_stand_for_another_file(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    for name in ("a", "b"):
        (one / name).write_bytes(name.encode())
    lines = "\n".join(f"{_sha256(name.encode())}  {name}" for name in ("a", "b"))
    (two / lines.split("  ", 1)[1]).write_bytes(b"a")
    assert content_digest(one) != content_digest(two)
    assert content_digest(one) == _sha256(f"{lines}\n".encode())


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def line_fault(folder: Path, write_manifest, line: str, **manifest) -> str:
    (folder / "metadata.jsonl").write_text(f"{line}\n")
    with pytest.raises(RecipeError) as error:
        load_dataset(write_manifest(**manifest), "test")
    (fault,) = error.value.faults
    assert len(fault) < 800
    return fault.removeprefix(f"{folder / 'metadata.jsonl'}:1: ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({**ROW, "file_name": "n" * 300}), "file_name: no image nnn"),
        (json.dumps({**ROW, "file_name": "n" * 10_000}), "file_name: no image 'nnn"),
        (json.dumps({**ROW, "file_name": "0.png\0"}), "file_name: no image '0.png\\x00'"),
        (json.dumps({**ROW, "file_name": ["0.png"]}), "file_name: give a text that is not empty, not ['0.png']"),
        (json.dumps({**ROW, "answer": ["x" * 1000] * 1000}), "answer: give a text that is not empty, not ['xxx"),
        (json.dumps({**ROW, "slice": "a\nb"}), "slice: give at most 200 characters without control characters, not "),
        (json.dumps({**ROW, "slice": ["a", "::x\x1b[m"]}), "slice: give at most 200 characters without control"),
        (json.dumps({**ROW, "slice": "s" * 201}), "slice: give at most 200 characters"),
        (json.dumps({**ROW, "slice": "x\ud800"}), "not JSON: it holds half of a surrogate pair, \\ud800"),
        (json.dumps({**ROW, "answer": "x\udfff"}), "not JSON: it holds half of a surrogate pair, \\udfff"),
        ("[" * 100_000, "not JSON: it is nested too deeply"),
        ('{"file_name": "0.png", "question": "?", "answer": "a", "answer": "b"}', "the key 'answer' is written twice"),
        ('{"file_name": "0.png", "x": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        (json.dumps({f"key{number}": 1 for number in range(5000)}), "no `question`; the line has: key0, key1, "),
    ],
)
def test_a_hostile_line_is_a_short_fault(write_folder, write_manifest, line, message):
    assert message in line_fault(write_folder([ROW]), write_manifest, line)


@pytest.mark.parametrize("identity", [[1], {"a": 1}, True, 1.5, None])
def test_an_id_of_coco_is_a_number_or_a_text(write_folder, write_manifest, identity):
    folder = write_folder([])
    (folder / "metadata.jsonl").unlink()
    captions = {
        "images": [{"id": 1, "file_name": "0.png"}, {"id": identity, "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "caption": "a"}, {"image_id": identity, "caption": "b"}],
    }
    (folder / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(RecipeError) as error:
        load_dataset(write_manifest(kind="captioning"), "test")
    assert [fault.partition(".json: ")[2].partition(", not")[0] for fault in error.value.faults] == [
        "annotations[1]: image_id: give a number or a text",
        "images[1]: id: give a number or a text",
    ]


def test_two_samples_of_one_id_are_refused(write_folder, write_manifest):
    folder = write_folder([])
    (folder / "metadata.jsonl").unlink()
    captions = {
        "images": [{"id": 1, "file_name": "0.png"}, {"id": "1", "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}],
    }
    (folder / "captions.json").write_text(json.dumps(captions))
    assert "two samples have the id 1" in refusal(write_manifest(kind="captioning"))


def test_a_thousand_samples_of_twenty_thousand_answers_are_drawn_as_before():
    samples = [Sample(str(n), Path(f"{n}.png"), "?", (f"answer {n % 20_000}",)) for n in range(30_000)]
    drawn = draw_stratified(samples, 1000, seed=3)
    assert len({sample.answers for sample in drawn}) == 1000
    assert {int(sample.id) % 20_000 < 10_000 for sample in drawn} == {True}  # the answers that come twice
    assert len(draw_stratified(samples, 25_000, seed=3)) == 25_000
    few = [Sample(str(n), Path(f"{n}.png"), "?", (answer,)) for n, answer in enumerate("aaaaaaaabbbbcc")]
    assert sorted(sample.answers[0] for sample in draw_stratified(few, 7, seed=0)) == ["a"] * 4 + ["b"] * 2 + ["c"]


MANIFEST = "name: x\nkind: vqa\nsource: {folder: images}\nlicence: CC0\nsplits: {test: {from: test}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MANIFEST + "splits: {test: {from: b}}\n", "data.yaml:6:1: the key 'splits' is written twice; the first is in"),
        (MANIFEST.replace("CC0", "''"), "data.yaml: licence: string should have at least 1 character"),
        (MANIFEST + "licens: x\n", "data.yaml: licens: unknown key; did you mean 'licence'?"),
        (MANIFEST.replace("from: test", "from: test, seed: -1"), "splits.test.seed: input should be greater"),
        (MANIFEST.replace("from: test", "from: test, samples: yes"), "splits.test.samples: input should be a valid i"),
        (MANIFEST.replace("from: test", "from: test, samples: 1.0"), "splits.test.samples: input should be a valid i"),
        (MANIFEST.replace("{from: test}", "[]"), "data.yaml: splits.test: give a mapping (got [])"),
        (MANIFEST.replace("kind: vqa", "kind: [vqa]"), "data.yaml: kind: input should be 'vqa', "),
        (MANIFEST + "digests: {test: 5}\n", "data.yaml: digests.test: input should be a valid string (got 5)"),
        (MANIFEST + "prompts: {}\n", "data.yaml: prompts: give a list (got {})"),
        (MANIFEST.replace("name: x", "name: !!str x"), "data.yaml:1:7: tags ('tag:yaml.org,2002:str') are not read"),
        (MANIFEST.replace("images", "f" * 5000), "source.folder: no folder '/"),
        ("[" * 3000, "data.yaml:1:51: nested more than 50 levels deep"),
    ],
)
def test_a_faulty_manifest_names_its_place(tmp_path, text, message):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    found = refusal(path)
    assert message in found
    assert len(found) < 900


def test_words_that_yaml_1_1_took_for_booleans_are_labels(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(MANIFEST.replace("vqa", "classification") + "labels: [yes, no, on]\nprompts: ['a {}']\n")
    assert read_dataset_manifest(path).labels == ("yes", "no", "on")


def test_mutated_lines_are_samples_or_faults(write_folder, write_manifest):
    folder, manifest = write_folder([ROW]), write_manifest()
    parts = ['"', "{", "}", "[", ":", ",", "\\ud800", "\0", "null", "1e999", "NaN", "\xff", '"slice": [[]],', "x" * 400]
    generator = random.Random(5)
    refused = 0
    for _ in range(150):
        text = json.dumps({**ROW, "slice": ["a"]})
        for _ in range(generator.randint(1, 3)):
            place = generator.randrange(len(text))
            text = text[:place] + generator.choice(parts) + text[place + generator.choice((0, 1, 9)) :]
        (folder / "metadata.jsonl").write_text(text, encoding=generator.choice(("utf-8", "latin-1")))
        try:
            load_dataset(manifest, "test")
        except VlmEdgeError:
            refused += 1
    assert refused > 75


def test_images_that_can_not_be_read_are_named_once(write_folder, write_manifest, monkeypatch):
    folder = write_folder([{**ROW, "file_name": f"{number}.png"} for number in range(4)])
    (folder / "2.png").write_text("no image")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:-30])
    dataset = load_dataset(write_manifest(), "test")
    unreadable, total = unreadable_images(dataset, "drop", SilentProgress())
    assert (sorted(unreadable), total) == (["2.png", "3.png"], 4)
    monkeypatch.setattr("vlm_edge.data.loading.read_image", None)  # remembered: nothing is decoded again
    assert unreadable_images(dataset, "drop", SilentProgress()) == (unreadable, 4)


def test_the_same_photo_in_two_splits_is_found_by_its_bytes(write_folder, write_manifest):
    rows = [{**ROW, "file_name": f"{number}.png"} for number in range(4)]
    test, train = write_folder(rows), write_folder(rows, part="train")
    for number in range(4):
        Image.fromarray(np.full((4, 5, 3), 100 + number, np.uint8)).save(train / f"{number}.png")
    manifest = write_manifest(splits={"test": {"from": "test"}, "train": {"from": "train"}})
    assert shared_images(load_dataset(manifest, "test"), load_dataset(manifest, "train")) == []
    (train / "3.png").write_bytes((test / "1.png").read_bytes())
    found = shared_images(load_dataset(manifest, "test"), load_dataset(manifest, "train"))
    assert found == [(train / "3.png", test / "1.png")]
