"""The zoo's BLIP on all targets: onnxruntime here, the whole runtime on emulated aarch64, TensorRT's rules."""

from __future__ import annotations

import json
from pathlib import Path

import aarch64
import numpy as np
import onnx
import pytest
from proto_passes import misplaced, violations

from vlm_edge.api import run_stage
from vlm_edge.backends import load_engine
from vlm_edge.data import load_dataset
from vlm_edge.data.dataset import Sample
from vlm_edge.processing.images import preprocess, read_image
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.quantizers.affine import Agreement
from vlm_edge.runtime import VqaPipeline, load_pipeline

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DATA = ROOT / "calibration" / "easy-vqa.yaml"
ARM = "name: arm-box\nengine: onnxruntime\nthreads: 1\nisa: arm\n"
QUESTIONS = 6


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "graphs"
    run_stage("export", {}, "zoo:blip-easyvqa", folder)
    return folder


@pytest.fixture(scope="module")
def arm(exported: Path) -> Path:
    """The INT8 bundle for ARM."""
    (exported.parent / "arm.yaml").write_text(ARM, encoding="utf-8")
    folder = exported.parent / "arm"
    target = str(exported.parent / "arm.yaml")
    run_stage("quantize", {"samples": 24}, exported, folder, data=DATA, target=target)
    return folder


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    return tuple(load_dataset(DATA, "test", limit=QUESTIONS).samples)


@pytest.fixture(scope="module")
def python() -> aarch64.Aarch64Python:
    try:
        return aarch64.assembled()
    except aarch64.UnavailableError as reason:
        pytest.skip(str(reason))


def test_the_runtime_answers_on_aarch64_as_it_does_here(
    exported: Path, arm: Path, samples: tuple[Sample, ...], python: aarch64.Aarch64Python
) -> None:
    here = []
    for folder in (exported, arm):
        pipeline = load_pipeline(folder, threads=1)
        assert isinstance(pipeline, VqaPipeline)
        here.append([pipeline.answer(sample.image, sample.text) for sample in samples])
    questions = arm.parent / "questions.json"
    questions.write_text(json.dumps([[str(sample.image), sample.text] for sample in samples]), encoding="utf-8")
    printed = python.run(ROOT / "tests" / "support" / "answer_questions.py", arm, questions)
    there = json.loads(printed)
    assert there["machine"] == "aarch64"
    assert there["answers"] == here[1]
    assert sum(a == b for a, b in zip(*here, strict=True)) >= QUESTIONS - 1
    shown = python.run("-m", "vlm_edge.cli", "answer", arm, samples[0].image, samples[0].text, "--threads", "1")
    assert shown.strip() == here[1][0]


def test_the_vision_tower_is_the_same_on_both_processors(
    exported: Path, arm: Path, samples: tuple[Sample, ...], python: aarch64.Aarch64Python, tmp_path: Path
) -> None:
    manifest = read_manifest(arm)
    row = manifest.components["vision_encoder"]
    (name,) = row.inputs
    feed = {name: preprocess([read_image(sample.image) for sample in samples], manifest.image)}
    np.savez(tmp_path / "feeds.npz", **feed)
    job = {"graph": str(arm / row.file), "feeds": str(tmp_path / "feeds.npz")}
    job |= {"outputs": str(tmp_path / "outputs.npz"), "level": "ORT_ENABLE_ALL"}
    (tmp_path / "jobs.json").write_text(json.dumps([job]), encoding="utf-8")
    python.run(ROOT / "tests" / "support" / "run_graphs.py", tmp_path / "jobs.json")
    floating, here = (load_engine("onnxruntime", folder / row.file, row, 1).infer(feed) for folder in (exported, arm))
    with np.load(tmp_path / "outputs.npz") as there:
        for output, value in here.items():
            for reference, bound in ((value, 0.99999), (floating[output], 0.999)):
                agreement = Agreement()
                agreement.add(reference, there[output])
                print(f"{output}: cosine {agreement.cosine:.7f}")
                assert agreement.cosine > bound


def test_what_is_written_for_tensorrt_keeps_its_rules(exported: Path) -> None:
    folder = exported.parent / "tensorrt"
    facts = run_stage("quantize", {"samples": 24}, exported, folder, data=DATA, target="jetson-orin-tensorrt")
    for name, component in read_manifest(folder).components.items():
        assert facts["components"][name]["scheme"] in ("int8", "int8-smooth")
        graph = onnx.load(folder / component.file)
        assert violations(graph) == misplaced(graph) == []
