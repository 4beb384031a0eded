from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_graphs import random_images, save_image, write_dual_encoder, write_vqa

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
    assert (vqa.exit_code, dual.exit_code) == (1, 1)
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
