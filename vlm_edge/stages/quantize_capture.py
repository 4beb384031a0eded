"""The true inputs of every component: the float pipeline runs on the calibration samples, and is listened to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from vlm_edge.backends.base import Array, Engine, Feed, Recorder
from vlm_edge.backends.compiling import reference_engine
from vlm_edge.core.stage import Progress
from vlm_edge.data.dataset import Dataset, check_unreadable
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import read_image
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.runtime.capabilities import Batch, Pipeline, ZeroShot, captions, zero_shot
from vlm_edge.runtime.pipeline import build_pipeline

HELD_OUT_EVERY = 8
"""One sample in so many is kept from the calibration, and what is quantized is checked on it."""


MOST_BYTES = 2 * 10**9
"""Of one component's inputs that are kept on disk for one use. A decoder's cached keys and values are as large as its
context, once for each token: a longer file is thinned out, so that disk and time are bounded."""


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

    def keep(self, wanted: Sequence[bool]) -> None:
        """Drop the dictionaries for which ``wanted``, one for each, is false."""
        thinned = ArrayFile(self._path.with_name(f"{self._path.name}.thinned"))
        for arrays, kept in zip(self, wanted, strict=True):
            if kept:
                thinned.append(arrays)
        thinned._path.replace(self._path)
        self._count = len(thinned)

    @property
    def size_bytes(self) -> int:
        return self._path.stat().st_size

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


class ThinnedFiles:
    """Files that are appended to together and hold a random half of their runs, then a quarter ..., as they fill.

    Which runs stay is decided by a hash of their number: no pattern of a decoder's runs (first, next, next) can agree
    with it, and it is the same every time.
    """

    def __init__(self, *files: ArrayFile) -> None:
        self._files = files
        self._numbers: list[int] = []
        self._seen = 0
        self._halvings = 0

    def append(self, *arrays: Mapping[str, Array]) -> None:
        number = self._seen
        self._seen += 1
        if not self._stays(number):
            return
        self._numbers.append(number)
        for file, each in zip(self._files, arrays, strict=True):
            file.append(each)
        while max(file.size_bytes for file in self._files) > MOST_BYTES and len(self._numbers) > 2:
            self._halvings += 1
            wanted = [self._stays(number) for number in self._numbers]
            for file in self._files:
                file.keep(wanted)
            self._numbers = [number for number, kept in zip(self._numbers, wanted, strict=True) if kept]

    def _stays(self, number: int) -> bool:
        return number == 0 or crc32(str(number).encode()) % 2**self._halvings == 0


class CaptureWriter:
    """Writes down one component's runs; ``held_out`` says for which use."""

    def __init__(self, captured: Captured) -> None:
        self.held_out = False
        self._calibration = ThinnedFiles(captured.calibration)
        self._held_out = ThinnedFiles(captured.held_out, captured.references)

    def keep(self, feed: Feed, outputs: Mapping[str, Array]) -> None:
        """Write one run."""
        if self.held_out:
            self._held_out.append(feed, outputs)
        else:
            self._calibration.append(feed)


@dataclass(frozen=True)
class Capture:
    """Captured inputs of every component, and counts of samples; ``skipped`` maps unreadable images to the reason."""

    components: dict[str, Captured]
    samples: int
    held_out: int
    skipped: dict[str, str]


def capture_inputs(
    graphs: Path, manifest: PipelineManifest, dataset: Dataset, scratch: Path, threads: int, progress: Progress
) -> Capture:
    """Run the float pipeline of ``graphs`` on every sample, one at a time as on the device.

    Whatever generates text: each question about its image, or the task's prompt, with all its decoder's steps and
    their cached keys and values. Dual encoders: each image, and each label in each prompt. At least two samples are
    needed, since one in :data:`HELD_OUT_EVERY` is held out.

    Raises:
        VlmEdgeError: fewer than two samples, more than 1% of the images unreadable, or the pipeline can't run.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    captured: dict[str, Captured] = {}
    writers: list[CaptureWriter] = []
    engines: dict[str, Engine] = {}
    for name, component in manifest.components.items():
        files = (ArrayFile(scratch / f"{name}.{use}") for use in ("calibration", "held_out", "references"))
        captured[name] = Captured(*files)
        writers.append(CaptureWriter(captured[name]))
        engine = reference_engine(graphs / component.file, component, threads)
        engines[name] = Recorder(engine, writers[-1].keep)
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
            held_out += _hold_out(writers, index, samples)
            try:
                image = read_image(sample.image, manifest.image.transparency)
            except VlmEdgeError as error:
                skipped[sample.image.name] = error.message
            else:
                _run_sample(pipeline, image, sample.text, dataset.prompts)
            ticker.advance()
    check_unreadable(dataset.name, "calibration", skipped, samples)
    if zero_shot(pipeline):
        _run_texts(pipeline, dataset, writers)
    return Capture(captured, samples, held_out, skipped)


def _hold_out(writers: Sequence[CaptureWriter], index: int, count: int) -> bool:
    """Tell the writers what the ``index``-th of ``count`` runs is for."""
    every = min(HELD_OUT_EVERY, count)
    held_out = index % every == every - 1
    for writer in writers:
        writer.held_out = held_out
    return held_out


def _run_sample(pipeline: Pipeline, image: Any, question: str, prompts: Sequence[str]) -> None:
    if zero_shot(pipeline):  # its texts are run apart
        pipeline.embed_images([image])
    elif captions(pipeline):
        pipeline.caption(image, *prompts[:1])
    else:
        pipeline.dry_run(Batch([image], [question]))


def _run_texts(pipeline: ZeroShot, dataset: Dataset, writers: Sequence[CaptureWriter]) -> None:
    """Every label in every prompt, or the samples' own texts where the data set has no labels."""
    labelled = [prompt.replace("{}", label) for prompt in dataset.prompts or ("{}",) for label in dataset.labels]
    texts = labelled or list(dict.fromkeys(sample.text for sample in dataset.samples if sample.text))
    if len(texts) < 2:
        raise VlmEdgeError(
            f"quantize: {dataset.name} has {len(texts)} texts for the text encoder; at least 2 are needed",
            "give the data set's manifest labels and prompts",
        )
    for index, text in enumerate(texts):
        _hold_out(writers, index, len(texts))
        pipeline.embed_texts([text], cut=True)
