"""Checks for compile before anything is built: sound scales, and runs of the source pipeline to compare with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vlm_edge.backends.base import Recorder
from vlm_edge.backends.compiling import reference_engine
from vlm_edge.backends.reference import AS_IS, ReferenceRuns
from vlm_edge.errors import VlmEdgeError
from vlm_edge.graphs.edit import constant, optional_input
from vlm_edge.graphs.files import load_graph
from vlm_edge.processing.images import Pixels
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.capabilities import Batch
from vlm_edge.runtime.pipeline import build_pipeline

BATCHES = (1, 3)
STEPS = 3
"""Decoder steps that are compared: the first has no past."""
_SCALES = {
    **{"QuantizeLinear": (1,), "DequantizeLinear": (1,), "MatMulNBits": (2,), "GatherBlockQuantized": (2,)},
    **{"QLinearMatMul": (1, 4, 6), "QLinearConv": (1, 4, 6)},
}
"""Places of the scales among an operator's inputs."""


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
    tokenizer = Tokenizer(folder, manifest.text) if manifest.text else None
    pipeline = build_pipeline(manifest, engines, folder)
    generator = np.random.default_rng(seed)
    for batch in BATCHES:
        images = [random_image(generator, manifest.image.height, manifest.image.width) for _ in range(batch)]
        texts = [
            tokenizer.decode(generator.integers(0, tokenizer.vocabulary_size, 3 + index).tolist()) if tokenizer else ""
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


def require_sound_scales(path: Path) -> None:
    """Nothing, if every constant scale of a graph's integer layers is a finite number other than 0.

    Raises:
        VlmEdgeError: one is not: all that it scales would become 0 or no number.
    """
    for node in load_graph(path).graph:
        for place in _SCALES.get(node.op_type, ()):
            value = optional_input(node, place)
            scales = constant(value)
            numbers = np.ones(1) if scales is None else scales.astype(np.float32)
            if value is not None and not (np.isfinite(numbers) & (numbers != 0)).all():
                raise VlmEdgeError(
                    f"{path}: the scale {value.name} holds 0 or what is no finite number", "quantize the model again"
                )
