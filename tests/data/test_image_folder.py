"""Image folders with metadata.jsonl: what is read, and how a bad line is named."""

from __future__ import annotations

import json

import pytest

from vlm_edge.data import load_dataset
from vlm_edge.errors import RecipeError, VlmEdgeError


def question(name="0.png", **fields):
    return {"file_name": name, "question": "what color is it?", "answer": "red", **fields}


def test_rows_become_samples_in_order(write_folder, write_manifest):
    several = {"file_name": "1.png", "question": "how many?", "answers": ["1", "one", "2"]}
    folder = write_folder([question(slice="color"), "", several, question("1.png", slice=["a", "b"], extra=3)])
    data = load_dataset(write_manifest(), "test")
    assert [sample.image for sample in data.samples] == [folder / "0.png", folder / "1.png", folder / "1.png"]
    assert [sample.answers for sample in data.samples] == [("red",), ("1", "one", "2"), ("red",)]
    assert [sample.slices for sample in data.samples] == [("color",), (), ("a", "b")]
    assert len({sample.id for sample in data.samples}) == 3
    assert (data.kind, data.labels) == ("vqa", ())


def test_classes_come_with_the_manifests_labels(write_folder, write_manifest):
    write_folder([{"file_name": "2.png", "label": "cat"}])
    path = write_manifest(kind="classification", labels=["dog", "cat"], prompts=["a {}"])
    data = load_dataset(path, "test")
    assert data.samples[0].answers == ("cat",)
    assert (data.labels, data.prompts) == (("dog", "cat"), ("a {}",))


def test_captions_are_gathered_by_image(write_folder, write_manifest):
    folder = write_folder(
        [
            {"file_name": "1.png", "captions": ["a dog", "the dog"], "slice": "pets"},
            {"file_name": "0.png", "caption": "a car"},
            {"file_name": "1.png", "caption": "a pet", "slice": ["pets", "new"]},
            {"file_name": "1.png", "caption": "a dog"},
        ]
    )
    data = load_dataset(write_manifest(kind="retrieval"), "test")
    assert [sample.image for sample in data.samples] == [folder / "1.png", folder / "0.png"]
    assert [sample.answers for sample in data.samples] == [("a dog", "the dog", "a pet"), ("a car",)]
    assert [sample.text for sample in data.samples] == ["a dog", "a car"]
    assert [sample.slices for sample in data.samples] == [("pets", "new"), ()]


def test_faults_of_captions_are_named(write_folder, write_manifest):
    folder = write_folder(
        [
            {"file_name": "0.png", "question": "?"},
            {"file_name": "0.png", "captions": ["a", " "]},
            {"file_name": "0.png", "captions": ["a"], "caption": "a"},
            {"file_name": "0.png", "caption": 3},
        ]
    )
    path = write_manifest(kind="retrieval")
    with pytest.raises(RecipeError) as caught:
        load_dataset(path, "test")
    messages = [
        "no `caption`; the line has: file_name, question",
        "captions: give a list of texts, one for each caption",
        "give `caption` or `captions`, not both",
        "caption: give a text that is not empty, not 3",
    ]
    for number, (fault, message) in enumerate(zip(caught.value.faults, messages, strict=True), start=1):
        assert fault.endswith(f"metadata.jsonl:{number}: {message}")
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(VlmEdgeError, match="cannot read") as missing:
        load_dataset(path, "test")
    assert '"captions": ["...", "..."]' in (missing.value.hint or "")


def test_a_byte_order_mark_and_odd_separators_are_no_faults(write_folder, write_manifest):
    folder = write_folder([])
    line = json.dumps(question(question="which\u2028way?"), ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(f"\ufeff{line}\r\n{line}\r\n", encoding="utf-8", newline="")
    assert [sample.text for sample in load_dataset(write_manifest(), "test").samples] == ["which\u2028way?"] * 2


def test_every_bad_line_is_named_by_file_and_line(write_folder, write_manifest):
    write_folder(
        [
            question(),
            '{"file_name": "0.png", ',
            "[1]",
            question("9.png"),
            question("../test/0.png"),
            {"file_name": "0.png", "answer": "red"},
            question(answers=["a"]),
            {"file_name": "0.png", "question": "?", "answers": []},
            question(answer=""),
            question(slice=3),
        ]
    )
    with pytest.raises(RecipeError) as caught:
        load_dataset(write_manifest(), "test")
    expected = [
        (2, "not JSON"),
        (3, "a line is a JSON object"),
        (4, "file_name: no image 9.png"),
        (5, "leads out of the folder"),
        (6, "no `question`; the line has: answer, file_name"),
        (7, "`answer` or `answers`, not both"),
        (8, "answers: give a list of texts"),
        (9, "answer: give a text that is not empty, not ''"),
        (10, "slice: give a text"),
    ]
    assert len(caught.value.faults) == len(expected)
    for fault, (line, message) in zip(caught.value.faults, expected, strict=True):
        assert f"metadata.jsonl:{line}: " in fault
        assert message in fault


def test_a_thousand_bad_lines_fit_a_screen(write_folder, write_manifest):
    write_folder(["{}"] * 1000)
    with pytest.raises(RecipeError) as caught:
        load_dataset(write_manifest(), "test")
    assert len(caught.value.faults) == 21
    assert caught.value.faults[-1] == "and 980 more"


def test_an_unknown_class_shows_the_known_ones(write_folder, write_manifest):
    write_folder([{"file_name": "0.png", "label": "cow"}])
    path = write_manifest(kind="classification", labels=["dog", "cat"], prompts=["a {}"])
    with pytest.raises(RecipeError, match="label: cow is not among the manifest's labels: dog, cat"):
        load_dataset(path, "test")


def test_no_metadata_and_no_sample_are_errors(write_folder, write_manifest):
    folder = write_folder([])
    with pytest.raises(VlmEdgeError, match=r"splits\.test: no sample in"):
        load_dataset(write_manifest(), "test")
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(VlmEdgeError, match=r"cannot read metadata\.jsonl"):
        load_dataset(write_manifest(), "test")
    with pytest.raises(VlmEdgeError, match="no folder"):
        load_dataset(write_manifest(source={"folder": "elsewhere"}), "test")
    with pytest.raises(VlmEdgeError, match="no such folder, or it holds no file"):
        load_dataset(write_manifest(splits={"test": {"from": "nothing"}}), "test")
