"""The true inputs of every component: the float pipeline runs on the calibration samples, and is listened to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset
from vlm_edge.data.unreadable import check_unreadable
from vlm_edge.engines import load_engine
from vlm_edge.engines.base import Array, Engine, Feed
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import read_image
from vlm_edge.processing.manifest import PipelineManifest, TensorSpec
from vlm_edge.runtime.dual_encoder import DualEncoderPipeline
from vlm_edge.runtime.pipeline import Pipeline, build_pipeline

HELD_OUT_EVERY = 8
"""One sample in so many is kept from the calibration, and what is quantized is checked on it."""


class ArrayFile:
    """Dictionaries of arrays, all with the same names, one after another in a file: read as often as needed, in order,
    one at a time in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: tuple[str, ...] = ()
        self._count = 0
        path.write_bytes(b"")

    def append(self, arrays: Mapping[str, Array]) -> None:
        self._names = self._names or tuple(arrays)
        with self._path.open("ab") as file:
            for name in self._names:
                np.save(file, arrays[name])
        self._count += 1

    def __iter__(self) -> Iterator[dict[str, Array]]:
        with self._path.open("rb") as file:
            for _ in range(self._count):
                yield {name: np.load(file) for name in self._names}

    def __len__(self) -> int:
        return self._count


@dataclass(frozen=True)
class Captured:
    """One component's runs: inputs to calibrate on, and held-out inputs with the float component's outputs."""

    calibration: ArrayFile
    held_out: ArrayFile
    references: ArrayFile


class ListeningEngine:
    """An engine that writes down what goes through it; ``held_out`` says for which use."""

    def __init__(self, engine: Engine, captured: Captured) -> None:
        self.name = engine.name
        self.held_out = False
        self._engine = engine
        self._captured = captured

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._engine.outputs

    def infer(self, feed: Feed) -> dict[str, Array]:
        outputs = self._engine.infer(feed)
        if self.held_out:
            self._captured.held_out.append(feed)
            self._captured.references.append(outputs)
        else:
            self._captured.calibration.append(feed)
        return outputs


@dataclass(frozen=True)
class Capture:
    """What came of a run over the samples; ``skipped`` maps unreadable images to the reason."""

    components: dict[str, Captured]
    samples: int
    held_out: int
    skipped: dict[str, str]


def capture_inputs(
    graphs: Path, manifest: PipelineManifest, dataset: Dataset, scratch: Path, threads: int, progress: Progress
) -> Capture:
    """Run the float pipeline of ``graphs`` on every sample, one at a time as on the device.

    VQA: each question about its image, all its decoder steps. Dual encoders: each image, and each label in each
    prompt. At least two samples are needed, since one in :data:`HELD_OUT_EVERY` is held out.

    Raises:
        VlmEdgeError: fewer than two samples, more than 1% of the images unreadable, or the pipeline can't run.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    captured: dict[str, Captured] = {}
    engines: dict[str, Engine] = {}
    for name, component in manifest.components.items():
        files = (ArrayFile(scratch / f"{name}.{use}") for use in ("calibration", "held_out", "references"))
        captured[name] = Captured(*files)
        engine = load_engine("onnxruntime", graphs / component.file, component, threads)
        engines[name] = ListeningEngine(engine, captured[name])
    pipeline = build_pipeline(manifest, engines, graphs)
    samples = len(dataset.samples)
    if samples < 2:
        raise VlmEdgeError(
            f"quantize: {dataset.name} has {samples} calibration samples; at least 2 are needed",
            "add samples to the calibration split, or raise `samples`",
        )
    skipped: dict[str, str] = {}
    held_out = 0
    with progress.bar("calibration inputs", samples) as ticker:
        for index, sample in enumerate(dataset.samples):
            held_out += _hold_out(engines, index, samples)
            try:
                image = read_image(sample.image)
            except VlmEdgeError as error:
                skipped[sample.image.name] = error.message
            else:
                _run_sample(pipeline, image, sample.text)
            ticker.advance()
    check_unreadable(dataset.name, "calibration", skipped, samples)
    if isinstance(pipeline, DualEncoderPipeline):
        _run_texts(pipeline, dataset, engines)
    return Capture(captured, samples, held_out, skipped)


def _hold_out(engines: Mapping[str, Any], index: int, count: int) -> bool:
    """Tell the engines what the ``index``-th of ``count`` runs is for."""
    every = min(HELD_OUT_EVERY, count)
    held_out = index % every == every - 1
    for engine in engines.values():
        engine.held_out = held_out
    return held_out


def _run_sample(pipeline: Pipeline, image: Any, question: str) -> None:
    if isinstance(pipeline, DualEncoderPipeline):
        pipeline.embed_images([image])
    else:
        pipeline.rehearse([image], [question])


def _run_texts(pipeline: DualEncoderPipeline, dataset: Dataset, engines: Mapping[str, Engine]) -> None:
    """Every label in every prompt, or the samples' own texts where the data set has no labels."""
    labelled = [prompt.replace("{}", label) for prompt in dataset.prompts or ("{}",) for label in dataset.labels]
    texts = labelled or list(dict.fromkeys(sample.text for sample in dataset.samples if sample.text))
    if len(texts) < 2:
        raise VlmEdgeError(
            f"quantize: {dataset.name} has {len(texts)} texts for the text encoder; at least 2 are needed",
            "give the data set's manifest labels and prompts",
        )
    for index, text in enumerate(texts):
        _hold_out(engines, index, len(texts))
        pipeline.embed_texts([text])
