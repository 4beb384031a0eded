"""Reference runs for compile: the source pipeline on random images and texts, without any graph optimization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vlm_edge.backends.base import Recorder
from vlm_edge.backends.reference import AS_IS, ReferenceRuns, reference_engine
from vlm_edge.processing.images import Pixels
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.capabilities import Batch
from vlm_edge.runtime.pipeline import build_pipeline

BATCHES = (1, 3)
STEPS = 3
"""Decoder steps that are compared: the first has no past."""


def reference_runs(
    folder: Path, manifest: PipelineManifest, threads: int, seed: int, scratch: Path
) -> dict[str, ReferenceRuns]:
    """Run the source pipeline as it stands on random images and texts, at each of :data:`BATCHES`; every component's
    runs, which are kept in ``scratch``."""
    runs = {name: ReferenceRuns(scratch / "runs" / name) for name in manifest.components}
    engines = {
        name: Recorder(reference_engine(folder / component.file, component, threads, AS_IS), runs[name].keep)
        for name, component in manifest.components.items()
    }
    text = Tokenizer(folder, manifest.text) if manifest.text else None
    pipeline = build_pipeline(manifest, engines, folder)
    generator = np.random.default_rng(seed)
    for batch in BATCHES:
        images = [random_image(generator, manifest.image.height, manifest.image.width) for _ in range(batch)]
        texts = [
            text.decode(generator.integers(0, text.vocabulary_size, 3 + index).tolist()) if text else ""
            for index in range(batch)
        ]
        pipeline.dry_run(Batch(images, texts, STEPS))
        if batch == 1:
            for each in runs.values():
                each.single_runs = len(each)
    return runs


def random_image(generator: np.random.Generator, height: int, width: int) -> Pixels:
    """Patches of random colours with soft edges, (height, width, 3) uint8: nearer to pictures than noise is."""
    patches = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))
