"""Captions in COCO's JSON: what is read, and how a bad entry is named."""

from __future__ import annotations

import json

import pytest

from vlm_edge.data import load_dataset
from vlm_edge.errors import RecipeError, VlmEdgeError

IMAGES = [
    {"id": 7, "file_name": "1.png", "height": 4, "width": 5, "license": 3},
    {"id": 3, "file_name": "0.png"},
]
ANNOTATIONS = [
    {"image_id": 3, "id": 10, "caption": "A car."},
    {"image_id": 7, "id": 11, "caption": "A dog on grass"},
    {"image_id": 7, "id": 12, "caption": "the dog"},
    {"image_id": 7, "id": 13, "caption": "the dog"},
]


@pytest.fixture
def write_captions(write_folder, write_manifest):
    """Writes a part with images and ``captions_val.json``; returns the manifest and the file."""

    def write(content):
        folder = write_folder([])
        (folder / "metadata.jsonl").unlink()
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "captions_val.json").write_text(text, encoding="utf-8")
        return write_manifest(kind="captioning"), folder / "captions_val.json"

    return write


def test_an_image_is_one_sample_with_all_its_captions(write_captions):
    manifest, path = write_captions({"info": {}, "images": IMAGES, "annotations": ANNOTATIONS})
    data = load_dataset(manifest, "test")
    assert [sample.image for sample in data.samples] == [path.parent / "1.png", path.parent / "0.png"]
    assert [sample.id for sample in data.samples] == ["7", "3"]
    assert data.samples[0].answers == ("A dog on grass", "the dog", "the dog")  # the evaluation counts them all
    assert {sample.text for sample in data.samples} == {""}


def test_every_bad_entry_is_named(write_captions):
    bad_images = [
        {"id": 3, "file_name": "2.png"},
        {"id": 4, "file_name": "2.png"},
        5,
        {"id": 8, "file_name": "9.png"},
        {"id": 9, "file_name": "../x.png"},
    ]
    bad_captions = [{"image_id": 3, "caption": " "}, {"caption": "x"}]
    bad_captions += [{"image_id": identity, "caption": "x"} for identity in (99, 8, 9)]
    manifest, path = write_captions({"images": IMAGES + bad_images, "annotations": ANNOTATIONS + bad_captions})
    with pytest.raises(RecipeError) as caught:
        load_dataset(manifest, "test")
    faults = [fault.removeprefix(f"{path}: ") for fault in caught.value.faults]
    assert faults == [
        "annotations[4]: caption: give a text that is not empty, not ' '",
        "annotations[5]: image_id: give a number or a text, not null",
        "images[2]: id: 3 is another image's, too",
        "images[3]: no caption of image 4 among the annotations",
        "images[4]: an entry is a JSON object",
        f"images[5]: file_name: no image 9.png in {path.parent}",
        "images[6]: file_name: ../x.png leads out of the folder",
        "annotations: 1 images that `images` does not list, such as 99",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ("[]", "must both be lists"),
        ({"images": IMAGES}, "must both be lists"),
        ({"images": IMAGES, "annotations": []}, "must both be lists"),
    ],
)
def test_what_is_no_captions_file_is_refused(write_captions, content, message):
    manifest, path = write_captions(content)
    with pytest.raises(VlmEdgeError, match=message) as caught:
        load_dataset(manifest, "test")
    assert str(path) in caught.value.message


def test_two_captions_files_are_refused(write_captions):
    manifest, path = write_captions({"images": IMAGES, "annotations": ANNOTATIONS})
    path.with_name("captions_train.json").write_text("{}")
    with pytest.raises(VlmEdgeError, match=r"2 files of captions: captions_train\.json, captions_val\.json"):
        load_dataset(manifest, "test")


def test_lines_of_our_own_hold_captions_too(write_folder, write_manifest):
    write_folder([{"file_name": "1.png", "captions": ["a dog", "the dog"]}, {"file_name": "1.png", "caption": "a pet"}])
    data = load_dataset(write_manifest(kind="captioning", prompts=["a picture of"]), "test")
    assert [(sample.text, sample.answers) for sample in data.samples] == [("", ("a dog", "the dog", "a pet"))]
    assert data.prompts == ("a picture of",)


@pytest.mark.parametrize("keys", [{"prompts": ["a picture of a {}"]}, {"prompts": ["a", "b"]}, {"labels": ["dog"]}])
def test_captions_begin_in_one_way_and_have_no_classes(write_folder, write_manifest, keys):
    write_folder([{"file_name": "1.png", "caption": "a dog"}])
    with pytest.raises(RecipeError, match=r"kind captioning takes one|belongs to kind classification"):
        load_dataset(write_manifest(kind="captioning", **keys), "test")
