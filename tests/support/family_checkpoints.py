"""Checkpoint folders of any family for its test: a seeded random model, an image processor's settings, a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.stages.export import ExportConfig, run
from vlm_edge.zoo.create import randomize
from vlm_edge.zoo.tokenizer import write_tokenizer

TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VOCABULARY, POSITIONS = 128, 24
PAD, CLS, SEP, MASK, DEC = 0, 2, 3, 4, 5
"""Ids of the tokenizer's special tokens."""


def write_checkpoint(
    folder: Path,
    model: Any,
    image_processor: dict[str, Any] | None = None,
    *,
    generation: dict[str, Any] | None = None,
    seed: int = 3,
) -> Path:
    """``model`` with random weights (biases and norms too), the processor's settings and the zoo's tokenizer."""
    randomize(model, seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for name, values in (("preprocessor_config", image_processor), ("generation_config", generation)):
        if values is not None:
            (folder / f"{name}.json").write_text(json.dumps(values))
    write_tokenizer(folder, VOCABULARY, POSITIONS)
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Set members of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def exported(checkpoint: Path, folder: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    """The export stage's output folder, and what it measured."""
    work = StageWork(out=folder / "out", scratch=folder / "scratch")
    work.out.mkdir(parents=True)
    run(ExportConfig(**config), StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, checkpoint)), work)
    return work.out, work.facts


def photos(count: int = 3, seed: int = 7) -> list[NDArray[np.uint8]]:
    """Random RGB images of different sizes, none of them square."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (40 + 9 * index, 57, 3), dtype=np.uint8) for index in range(count)]


def least_cosine(actual: Any, expected: Any) -> float:
    """The smallest cosine between rows (n, dim) of two sets of embeddings."""
    pair = (torch.as_tensor(np.asarray(values), dtype=torch.float64) for values in (actual, expected))
    return float(torch.nn.functional.cosine_similarity(*pair).min())
