"""Batches for a learner, of samples about given pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.training.learner import Learner, TrainingBatch

GREY = np.full((40, 50, 3), 90, np.uint8)


def sample(text: str = "", *answers: str, image: int = 0) -> Sample:
    return Sample(id=text, image=Path(f"{image}.png"), text=text, answers=answers or ("red",))


def batch_of(
    learner: Learner,
    samples: Sequence[Sample],
    index: Sequence[int],
    pixels: Tensor | None = None,
    *,
    labels: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> TrainingBatch:
    """Each sample about the image ``index`` of ``pixels`` (images, 3, height, width), default: grey ones."""
    dataset = Dataset("colors", "vqa", "train", tuple(samples), "", tuple(labels), tuple(prompts))
    pictures = [learner.picture(GREY)] * (max(index) + 1)
    learner.check(dataset, pictures)
    batch = learner.batch(samples, np.array(index), pictures, dataset)
    return replace(batch, pixels=learner.pixels(pictures) if pixels is None else {"pixel_values": pixels})


def logits_of(learner: Learner, batch: TrainingBatch) -> Tensor:
    return learner.logits(learner.encode(batch), batch)


def see(learner: Learner, pixels: Tensor) -> Tensor:
    """The features of ``pixels``."""
    none = torch.zeros(0, dtype=torch.int64)
    return learner.encode(TrainingBatch(none, {}, none, (1,) * len(pixels), {"pixel_values": pixels}))
