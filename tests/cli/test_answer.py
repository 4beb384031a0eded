from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_graphs import random_images, save_image, write_dual_encoder, write_vqa

from vlm_edge.cli.main import main
from vlm_edge.runtime import DualEncoderPipeline, VqaPipeline, load_pipeline

QUESTION = "what color is it"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save_image(tmp_path / "image.png", random_images(1)[0])


def test_the_answer_is_the_runtime_s(tmp_path: Path, image: Path, empty: Any) -> None:
    write_vqa(tmp_path / "bundle")
    pipeline = load_pipeline(tmp_path / "bundle")
    assert isinstance(pipeline, VqaPipeline)
    result = empty.invoke("answer", str(tmp_path / "bundle"), str(image), QUESTION)
    assert result.exit_code == 0
    assert result.stdout == f"{pipeline.answer(image, QUESTION)}\n"


def test_a_run_s_folder_stands_for_its_bundle(tmp_path: Path, image: Path, empty: Any) -> None:
    write_vqa(tmp_path / "runs" / "toy" / "bundle")
    arguments = [str(image), QUESTION, "--json", "--threads", "1"]
    of_run = empty.invoke("answer", str(tmp_path / "runs" / "toy"), *arguments)
    of_bundle = empty.invoke("answer", str(tmp_path / "runs" / "toy" / "bundle"), *arguments)
    assert of_run.stdout == of_bundle.stdout
    assert set(json.loads(of_run.stdout)) == {"image", "question", "answer"}


def test_a_dual_encoder_chooses_among_labels(tmp_path: Path, image: Path, empty: Any) -> None:
    write_dual_encoder(tmp_path / "bundle")
    pipeline = load_pipeline(tmp_path / "bundle")
    assert isinstance(pipeline, DualEncoderPipeline)
    labels = ["red", "green", "blue"]
    shares = pipeline.classify([image], labels)[0]
    options = [part for label in labels for part in ("--label", label)]
    result = empty.invoke("answer", str(tmp_path / "bundle"), str(image), "--json", *options)
    found = json.loads(result.stdout)
    assert found["answer"] == labels[int(shares.argmax())]
    assert found["probabilities"] == pytest.approx(dict(zip(labels, map(float, shares), strict=True)))


def test_a_model_without_what_it_needs_says_so(tmp_path: Path, image: Path, empty: Any) -> None:
    write_vqa(tmp_path / "vqa")
    write_dual_encoder(tmp_path / "dual")
    vqa = empty.invoke("answer", str(tmp_path / "vqa"), str(image))
    dual = empty.invoke("answer", str(tmp_path / "dual"), str(image), QUESTION)
    assert (vqa.exit_code, dual.exit_code) == (2, 2)
    assert "hint: give one after the image" in vqa.stderr
    assert "hint: give --label once for every class" in dual.stderr


def test_a_broken_image_and_a_folder_without_manifest_are_named(tmp_path: Path, image: Path, empty: Any) -> None:
    write_vqa(tmp_path / "vqa")
    (tmp_path / "empty.png").touch()
    broken = empty.invoke("answer", str(tmp_path / "vqa"), str(tmp_path / "empty.png"), QUESTION)
    nothing = empty.invoke("answer", str(tmp_path), str(image), QUESTION)
    assert (broken.exit_code, nothing.exit_code) == (1, 1)
    assert "empty.png" in broken.stderr
    assert "manifest.json" in nothing.stderr
    assert broken.stdout == nothing.stdout == ""


def photos(folder: Path, count: int = 3) -> list[Path]:
    folder.mkdir()
    return [save_image(folder / f"{index}.png", pixels) for index, pixels in enumerate(random_images(count, seed=4))]


@pytest.fixture
def one_by_one(tmp_path: Path) -> Any:
    """The lines that stand for photos: each answered by itself through the Python API."""
    write_vqa(tmp_path / "bundle")
    pipeline: Any = load_pipeline(tmp_path / "bundle", threads=1)
    return lambda paths, question=QUESTION: "".join(f"{path}\t{pipeline.answer(path, question)}\n" for path in paths)


def test_a_folder_and_a_pattern_are_answered_line_by_line(tmp_path: Path, empty: Any, one_by_one: Any) -> None:
    paths = photos(tmp_path / "photos")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    bundle = str(tmp_path / "bundle")
    folder = empty.invoke("answer", bundle, str(tmp_path / "photos"), QUESTION)
    pattern = empty.invoke("answer", bundle, str(tmp_path / "photos" / "[12].png"), QUESTION)
    assert (folder.exit_code, folder.stdout) == (0, one_by_one(paths))
    assert (pattern.exit_code, pattern.stdout) == (0, one_by_one(paths[1:]))


def test_a_jsonl_file_brings_its_own_questions(tmp_path: Path, empty: Any, one_by_one: Any) -> None:
    paths = photos(tmp_path / "photos", 2)
    rows = [{"image": "0.png", "question": "is it red", "id": 7}, {"image": str(paths[1])}]
    (tmp_path / "photos" / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    result = empty.invoke("answer", str(tmp_path / "bundle"), str(tmp_path / "photos" / "asked.jsonl"), QUESTION)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == one_by_one(paths[:1], "is it red") + one_by_one(paths[1:])


def test_stdin_takes_paths_and_objects_and_goes_on_after_what_has_no_answer(tmp_path: Path, one_by_one: Any) -> None:
    paths = photos(tmp_path / "photos")
    (tmp_path / "photos" / "bad\tname.png").write_bytes(b"no image")
    lines = [str(paths[0]), str(tmp_path / "photos" / "bad\tname.png"), "{", '{"question": "x"}', '{"image": 3}']
    lines += ["[" * 9, json.dumps({"image": str(paths[2]), "question": "is it red"})]
    arguments = ["answer", str(tmp_path / "bundle"), "-", QUESTION]
    result = CliRunner().invoke(main, arguments, input="\n".join(lines))
    assert result.stdout == one_by_one(paths[:1]) + one_by_one(paths[2:], "is it red")
    assert result.exit_code == 1
    assert "5 of 7 photos have no answer" in result.stderr
    assert "-:4: no `image`" in result.stderr
    rows = CliRunner().invoke(main, [*arguments, "--json"], input="\n".join(lines)).stdout.splitlines()
    assert ["answer" in json.loads(row) for row in rows] == [True, *[False] * 5, True]


def test_no_photo_is_an_error(tmp_path: Path, empty: Any) -> None:
    write_vqa(tmp_path / "bundle")
    (tmp_path / "none").mkdir()
    for image in (tmp_path / "none", tmp_path / "none" / "*.png", tmp_path / "none.jsonl"):
        result = empty.invoke("answer", str(tmp_path / "bundle"), str(image), QUESTION)
        assert (result.exit_code, result.stdout) == (1, "")
        assert str(image) in result.stderr


def test_max_new_tokens(tmp_path: Path, image: Path, empty: Any) -> None:
    write_vqa(tmp_path / "bundle", seed=1)
    pipeline: Any = load_pipeline(tmp_path / "bundle", threads=1)
    for limit in (1, 2):
        result = empty.invoke("answer", str(tmp_path / "bundle"), str(image), QUESTION, "--max-new-tokens", str(limit))
        assert result.stdout.strip() == pipeline.answer(image, QUESTION, max_new_tokens=limit)
    for limit in ("0", "-1", "1000000000"):
        result = empty.invoke("answer", str(tmp_path / "bundle"), str(image), QUESTION, "--max-new-tokens", limit)
        assert result.exit_code == 2
    write_dual_encoder(tmp_path / "dual")
    arguments = [str(tmp_path / "dual"), str(image), "--label", "red", "--max-new-tokens", "3"]
    assert empty.invoke("answer", *arguments).exit_code == 2


def test_an_altered_bundle_answers_only_on_request_and_says_so(tmp_path: Path, image: Path, empty: Any) -> None:
    write_vqa(tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    path.write_text(path.read_text().replace("0.25", "0.26"))
    arguments = ["answer", str(tmp_path / "bundle"), str(image), QUESTION]
    assert empty.invoke(*arguments).exit_code == 1
    asked = empty.invoke(*arguments, "--no-verify")
    assert asked.exit_code == 0
    assert "not verified" in asked.stderr
    assert "not verified" in empty.invoke("--quiet", *arguments, "--no-verify").stderr


def test_a_question_longer_than_the_model_reads_is_refused(tmp_path: Path, image: Path, empty: Any) -> None:
    write_vqa(tmp_path / "bundle")
    result = empty.invoke("answer", str(tmp_path / "bundle"), str(image), "is it red " * 4)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "14 tokens; this model reads at most 10" in result.stderr
