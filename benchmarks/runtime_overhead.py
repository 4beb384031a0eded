"""What the runtime adds to its engines' time: image, tokenizer, Python and the decoding loop, for one question.

    python benchmarks/runtime_overhead.py FOLDER [QUESTION]

FOLDER holds exported graphs or a compiled engine of a VQA model. Times are the least and the median of 9 rounds, in
microseconds; ``answer, engines free`` is an answer of one token and an end token on engines that take no time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_edge.backends.base import Array, Engine, Feed
from vlm_edge.processing.images import preprocess, read_image
from vlm_edge.processing.manifest import TensorSpec, read_manifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.pipeline import build_pipeline, load_pipeline
from vlm_edge.runtime.vqa import VqaPipeline

ROUNDS = 9


class FreeEngine:
    """Gives fixed outputs of batch 1 at once; a decoder gives one token, then the end token, in turns."""

    name = "free"

    def __init__(self, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], eos_token_id: int) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._results = {
            name: np.zeros([dim if isinstance(dim, int) else 1 for dim in spec.shape], np.float32)
            for name, spec in outputs.items()
        }
        self._ends = False
        self._eos_token_id = eos_token_id

    def infer(self, feed: Feed) -> dict[str, Array]:
        if (logits := self._results.get("logits")) is not None:
            logits[0, 0, self._eos_token_id] = 1.0 if self._ends else -1.0
            self._ends = not self._ends
        return self._results


def microseconds(call: Callable[[], object]) -> tuple[float, float]:
    """(least, median) time of one call over the rounds, each of about 20 ms."""
    start = time.perf_counter()
    call()
    count = max(1, int(0.02 / max(1e-7, time.perf_counter() - start)))
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            call()
        rounds.append(1e6 * (time.perf_counter() - start) / count)
    return min(rounds), statistics.median(rounds)


def main() -> None:
    folder = Path(sys.argv[1])
    question = sys.argv[2] if len(sys.argv) > 2 else "is there a red circle in the image?"
    manifest, text = read_manifest(folder), Tokenizer(folder, read_manifest(folder).text)
    assert manifest.generation is not None
    eos = manifest.generation.eos_token_id
    free: dict[str, Engine] = {
        name: FreeEngine(row.inputs, row.outputs, eos) for name, row in manifest.components.items()
    }
    real, idle = load_pipeline(folder), build_pipeline(manifest, free, text)
    assert isinstance(real, VqaPipeline)
    assert isinstance(idle, VqaPipeline)
    size = (manifest.image.height, manifest.image.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    picture = Image.fromarray(pixels)
    cases: dict[str, Callable[[], object]] = {
        "read_image, RGB array": lambda: read_image(pixels),
        "read_image, PIL image": lambda: read_image(picture),
        "preprocess": lambda: preprocess([pixels], manifest.image),
        "encode the question": lambda: text.encode([question]),
        "decode one token": lambda: text.decode([eos + 1]),
        "answer, engines free": lambda: idle.answer(pixels, question),
        "answer": lambda: real.answer(pixels, question),
    }
    print(f"{'us':<24} {'least':>9} {'median':>9}   n {ROUNDS}")
    for name, call in cases.items():
        print(f"{name:<24} {'{:9.1f} {:9.1f}'.format(*microseconds(call))}")


if __name__ == "__main__":
    main()
