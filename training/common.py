"""What both training scripts share: a JSONL log, optimizers with a schedule, and a moving average of weights."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin


def set_up(seed: int, threads: int) -> None:
    """Seeds every generator and sets the CPU up for training."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


class JsonlLog:
    """Appends records to a JSONL file, each with the seconds since the log was opened, and prints them."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._start = time.monotonic()

    def write(self, **record: Any) -> None:
        """Writes one record; floats are rounded to five digits."""
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in record.items()}
        rounded["seconds"] = round(time.monotonic() - self._start, 1)
        line = json.dumps(rounded)
        self._file.write(line + "\n")
        self._file.flush()
        print(line, flush=True)


class ScheduledOptimizer:
    """Muon for the hidden matrices and AdamW for all other parameters, with linear warm-up and cosine decay to zero."""

    def __init__(
        self, matrices: list[nn.Parameter], others: list[nn.Parameter], muon_lr: float, adam_lr: float, steps: int
    ) -> None:
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        if matrices:
            self._optimizers.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01))
        self._parameters = [*matrices, *others]
        warm_up = max(1, min(100, steps // 10))

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

        self._schedulers = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in self._optimizers]

    def step(self, loss: torch.Tensor) -> None:
        """One update from `loss`, with the gradient norm clipped to 1."""
        loss.backward()  # type: ignore[no-untyped-call]
        self.update()

    def update(self) -> None:
        """One update from the gradients that are there."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, scheduler in zip(self._optimizers, self._schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()

    def state(self) -> list[dict[str, Any]]:
        """All that another run needs to continue from here."""
        return [each.state_dict() for each in (*self._optimizers, *self._schedulers)]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Continues from what ``state`` gave."""
        for each, values in zip((*self._optimizers, *self._schedulers), state, strict=True):
            each.load_state_dict(values)


def split_parameters(modules: list[nn.Module], matrix_owners: list[nn.Module]) -> tuple[list[Any], list[Any]]:
    """Parts the parameters of `modules` into the 2-D ones inside `matrix_owners` and all others."""
    owned = {id(p) for owner in matrix_owners for p in owner.parameters()}
    every = {id(p): p for module in modules for p in module.parameters()}
    matrices = [p for key, p in every.items() if key in owned and p.ndim == 2]
    others = [p for key, p in every.items() if key not in owned or p.ndim != 2]
    return matrices, others


class WeightAverage:
    """An exponential moving average of a module's weights, with a short memory at first."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self._updates = 0
        self._average = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the current weights into the average."""
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 10))
        torch._foreach_lerp_(self._average, [p.detach() for p in self._module.parameters()], 1 - decay)

    def state(self) -> list[torch.Tensor]:
        """The average itself, which `restore` takes."""
        return self._average

    @torch.no_grad()
    def restore(self, average: list[torch.Tensor]) -> None:
        """Continues from what `state` gave."""
        self._updates = 1_000_000
        for mine, value in zip(self._average, average, strict=True):
            mine.copy_(value)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the module's weights and the average; a second call undoes it."""
        for average, parameter in zip(self._average, self._module.parameters(), strict=True):
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)


def batches(count: int, size: int, steps: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yields `steps` batches of indices below `count`, each epoch in a new random order."""
    order = rng.permutation(count)
    start = 0
    for _ in range(steps):
        if start + size > count:
            order, start = rng.permutation(count), 0
        yield order[start : start + size]
        start += size


def save_folder(model: PreTrainedModel, processor: ProcessorMixin, out: Path) -> None:
    """Writes model and processor beside `out`, then renames; other files that `out` already holds are kept.

    The image processor gets a preprocessor_config.json of its own, which tools that know no processor_config.json read.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    processor.save_pretrained(fresh)
    processor.image_processor.save_pretrained(fresh)
    out.mkdir(exist_ok=True)
    for path in sorted(fresh.iterdir()):
        path.chmod(0o644)
        path.replace(out / path.name)
    fresh.rmdir()
