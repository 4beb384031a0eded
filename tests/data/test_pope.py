"""POPE's files, and easy-VQA's polls: what is read, and how a bad line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm_edge.data import load_dataset
from vlm_edge.errors import RecipeError, VlmEdgeError


def poll(image="0.png", label="yes", **fields):
    return {"question_id": 1, "image": image, "text": "Is there a dog in the image?", "label": label, **fields}


@pytest.fixture
def write_polls(write_folder, write_manifest):
    """Writes a part with images and the given files of lines; returns the manifest and the part's folder."""

    def write(**files):
        folder = write_folder([])
        (folder / "metadata.jsonl").unlink()
        for name, rows in files.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (folder / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return write_manifest(kind="hallucination"), folder

    return write


def test_the_files_are_read_in_order_and_name_the_slices(write_polls):
    manifest, folder = write_polls(
        coco_pope_random=[poll("1.png"), poll("2.png", "no")], coco_pope_adversarial=[poll(label="No", text="is it?")]
    )
    samples = load_dataset(manifest, "test").samples
    assert [(sample.image, sample.answers, sample.slices) for sample in samples] == [
        (folder / "0.png", ("no",), ("adversarial",)),
        (folder / "1.png", ("yes",), ("random",)),
        (folder / "2.png", ("no",), ("random",)),
    ]
    assert [sample.text for sample in samples] == ["is it?", *2 * ["Is there a dog in the image?"]]
    assert len({sample.id for sample in samples}) == 3  # POPE numbers the questions of each file from 1


def test_every_bad_line_is_named(write_polls):
    manifest, folder = write_polls(
        coco_pope_popular=[poll(), "{", "[]", poll("9.png"), poll("/x.png"), poll(label="maybe"), {"image": "0.png"}]
    )
    with pytest.raises(RecipeError) as caught:
        load_dataset(manifest, "test")
    faults = [fault.removeprefix(f"{folder / 'coco_pope_popular.json'}:") for fault in caught.value.faults]
    assert faults[0].startswith("2: not JSON: ")
    assert faults[1:] == [
        "3: a line is a JSON object",
        f"4: image: no image 9.png in {folder}",
        "5: image: /x.png leads out of the folder",
        "6: label: give yes or no, not 'maybe'",
        "7: no `text`; the line has: image",
    ]


def test_a_file_that_is_not_utf_8_is_refused(write_polls):
    manifest, folder = write_polls(coco_pope_popular=[poll()])
    (folder / "coco_pope_popular.json").write_bytes(b"\xff\xfe")
    with pytest.raises(VlmEdgeError, match="cannot read coco_pope_popular"):
        load_dataset(manifest, "test")


def test_lines_of_our_own_hold_polls_too(write_folder, write_manifest):
    write_folder([{"file_name": "1.png", "question": "is there a dog?", "answer": "Yes", "slice": "popular"}])
    (sample,) = load_dataset(write_manifest(kind="hallucination"), "test").samples
    assert (sample.text, sample.answers, sample.slices) == ("is there a dog?", ("yes",), ("popular",))


def test_an_answer_that_is_neither_is_named(write_folder, write_manifest):
    write_folder([{"file_name": "1.png", "question": "is there a dog?", "answer": "red"}])
    with pytest.raises(RecipeError, match=r"metadata\.jsonl:1: answer: give yes or no, not 'red'"):
        load_dataset(write_manifest(kind="hallucination"), "test")


def test_easy_vqas_polls_ask_what_is_there() -> None:
    pytest.importorskip("easy_vqa")
    manifest = Path(__file__).parents[2] / "calibration" / "easy-vqa-hallucination.yaml"
    samples = load_dataset(manifest, "test").samples
    assert len(samples) == 3531
    assert sum(sample.answers == ("yes",) for sample in samples) == 626
    assert {sample.slices for sample in samples} == {("color",), ("shape",)}
    assert not any(word in ("no", "not") for sample in samples for word in sample.text.split())
    for sample in samples:
        assert sample.slices == (("color",) if " shape" in sample.text else ("shape",))
