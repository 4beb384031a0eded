"""The training loop of every stage that trains: seeded, and it goes on after a kill as if nothing had happened.

Prune's recovery and distillation give it a module, a :class:`TrainingSet` and a loss; everything that the next step
depends on is written into the scratch folder every few seconds. The order of the batches is a function of the seed and
the step alone. Data: ``training_data.py``; settings: ``training_config.py`` (importable without torch).
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlm_edge.core.stage import StageWork
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically
from vlm_edge.machine import computes_bfloat16
from vlm_edge.stages.training_config import TrainingConfig
from vlm_edge.stages.training_data import RowCache, TrainingSet
from vlm_edge.training.learner import Learner, TrainingBatch

CHECKPOINT_SECONDS = 15.0
HISTORY_POINTS = 20
IMAGES_PER_PASS = 16
"""Few enough for a processor's caches: a ViT's bfloat16 pass took 10 ms an image with 16 of them, 20 ms with 128."""


@dataclass(frozen=True)
class Minibatch:
    """The input of a loss: ``batch`` on the training's device, ``images`` and ``questions`` its rows in the
    training set.

    ``rng`` belongs to this step alone: augmentation that draws from it is the same after a kill.
    """

    batch: TrainingBatch
    images: NDArray[np.int64]
    questions: NDArray[np.int64]
    rng: np.random.Generator


LossTerms = Callable[[Minibatch], Mapping[str, Tensor]]
"""Named terms, already weighted: their sum is minimised, and the mean of each is reported."""


def training_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[Any]:
    """Bfloat16 autocast where the processor multiplies bfloat16 natively (CUDA, AVX512-BF16, AMX), else nothing."""
    if precision == "auto" and (device.type == "cuda" or computes_bfloat16()):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormal floats count as zero: they slow training down up to 25 times, and carry nothing."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def cache_features(learner: Learner, data: TrainingSet, name: str, work: StageWork) -> RowCache:
    """Every image's features by ``learner``, computed once: float16 in ``work.scratch/name``, an item an image.

    The learner is in evaluation mode on the training's device.
    """
    device = training_device()

    @torch.inference_mode()
    def compute(rows: range) -> NDArray[Any]:
        parts = []
        with autocast(device):
            for start in range(rows.start, rows.stop, IMAGES_PER_PASS):
                images = range(start, min(start + IMAGES_PER_PASS, rows.stop))
                parts.append(learner.encode(data.seen(images).to(device)).float().cpu())
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float16)

    sizes = [picture.tiles for picture in data.pictures]
    with flushed_denormals():
        return RowCache(work.scratch / name, len(data.images), compute, sizes).fill("image features", work)


class WeightAverage:
    """Exponential moving average of weights, with a short memory at first: min(decay, (1 + n) / (10 + n))."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.updates = 0
        self.average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self._parameters], 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the module."""
        for average, parameter in zip(self.average, self._parameters, strict=True):
            parameter.copy_(average)


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over ``warmup * steps`` steps, then a cosine to zero at ``steps`` (Loshchilov 2017, eq. 5)."""
    rising = min(round(warmup * steps), steps - 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def parameter_groups(module: nn.Module, weight_decay: float, rate_scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, biases and norms don't; ``rate_scale`` is that of the longest matching prefix of
    the parameter's name in ``rate_scales``, else 1. Frozen parameters are in none."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            prefixes = [prefix for prefix in rate_scales if name.startswith(prefix)]
            scale = rate_scales[max(prefixes, key=len)] if prefixes else 1.0
            groups.setdefault((scale, weight_decay if parameter.ndim >= 2 else 0.0), []).append(parameter)
    return [
        {"params": parameters, "rate_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


@dataclass(frozen=True)
class Course:
    """One training of a stage: ``label`` names its state and its bar; ``pixels``: batches hold the images.

    ``rate_scales`` maps prefixes of parameter names to factors on the learning rate (1 where there is none).
    """

    label: str = "training"
    pixels: bool = True
    rate_scales: Mapping[str, float] = field(default_factory=dict)


WHOLE_MODEL = Course()
"""Every parameter at the same rate, from pixels."""


class Training:
    """One run of :func:`train`: the module, the optimizer, the position, and what was lost so far."""

    def __init__(
        self,
        module: nn.Module,
        data: TrainingSet,
        loss: LossTerms,
        config: TrainingConfig,
        seed: int,
        course: Course,
    ) -> None:
        self.module, self.data, self.loss, self.config = module, data, loss, config
        self.seed, self.pixels = seed, course.pixels
        self.device = training_device()
        self.images = data.usable_images
        self.per_batch = min(config.images_per_batch, len(self.images))
        self.steps_per_epoch = len(self.images) // self.per_batch
        self.steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.pending: dict[str, float] = {}
        self.pending_steps = 0
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise VlmEdgeError("nothing to train: every parameter is frozen")
        self.optimizer = torch.optim.AdamW(
            parameter_groups(module, config.weight_decay, course.rate_scales),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
        )
        self.average = WeightAverage(self.parameters, config.ema_decay) if config.ema_decay else None

    def minibatch(self) -> Minibatch:
        """The batch of the current step: a function of the seed and the step."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
        images = order[position * self.per_batch : (position + 1) * self.per_batch]
        rng = np.random.default_rng([self.seed, epoch, position + 1])
        chosen = self.data.choose(images, questions_per_image=self.config.questions_per_image, rng=rng)
        batch = self.data.batch(images, chosen=chosen, pixels=self.pixels)
        return Minibatch(batch.to(self.device), images, np.concatenate(chosen), rng)

    def advance(self) -> float:
        """One step; returns its loss.

        Raises:
            VlmEdgeError: the loss is not finite.
        """
        factor = learning_rate_factor(self.step, self.steps, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor * group["rate_scale"]
        with autocast(self.device, self.config.precision):
            terms = self.loss(self.minibatch())
        total = torch.stack([term.float() for term in terms.values()]).sum()
        value = float(total.detach())
        if not math.isfinite(value):
            raise VlmEdgeError(
                f"training: the loss is {value} at step {self.step + 1} of {self.steps}",
                f"lower learning_rate ({self.config.learning_rate}) or clip_norm ({self.config.clip_norm})",
            )
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        self._record({name: float(term.detach()) for name, term in terms.items()})
        return value

    def _record(self, terms: Mapping[str, float]) -> None:
        self.step += 1
        self.pending_steps += 1
        for name, value in terms.items():
            self.pending[name] = self.pending.get(name, 0.0) + value
        if self.step == self.steps or self.step % math.ceil(self.steps / HISTORY_POINTS) == 0:
            means = {name: round(value / self.pending_steps, 6) for name, value in self.pending.items()}
            self.history.append({"step": self.step, **means})
            self.pending, self.pending_steps = {}, 0

    def set_modes(self) -> None:
        """Training mode, except modules whose parameters are all frozen: their batch statistics don't move."""
        self.module.train()
        for module in self.module.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        trained = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        frozen = {name for name, _ in self.module.named_parameters()} - trained
        weights = {name: value for name, value in self.module.state_dict().items() if name not in frozen}
        return {
            "identity": self.identity(),
            "weights": weights,
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else (self.average.updates, self.average.average),
            "step": self.step,
            "losses": (self.history, self.pending, self.pending_steps),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def identity(self) -> str:
        """The settings that a saved state must agree on to be continued."""
        shapes = [list(parameter.shape) for parameter in self.parameters]
        return repr((self.config.model_dump(mode="json"), self.seed, self.steps, len(self.data.samples), shapes))

    def restore(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.updates, saved = state["average"]
            for average, value in zip(self.average.average, saved, strict=True):
                average.copy_(value)
        self.step = state["step"]
        self.history, self.pending, self.pending_steps = state["losses"]
        torch.set_rng_state(state["rng"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all([generator.cpu() for generator in state["rng_cuda"]])


def train(
    module: nn.Module,
    data: TrainingSet,
    loss: LossTerms,
    config: TrainingConfig,
    work: StageWork,
    course: Course = WHOLE_MODEL,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Train ``module``'s parameters that require a gradient, in place; on return it is in evaluation mode on the CPU.

    State goes to ``work.scratch/<course.label>.pt``; a later call with the same arguments continues from it and, on the
    same host without CUDA, ends with the same bits as a run that was never interrupted.

    Returns:
        ``{"steps", "epochs", "images", "questions", "losses"}`` for ``work.facts``; ``losses`` is a list of
        ``{"step": n, term: mean since the last entry}``.
    """
    path = work.scratch / f"{course.label.replace(' ', '_')}.pt"
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), flushed_denormals():
        torch.manual_seed(work.seed)
        module.to(training_device())
        training = Training(module, data, loss, config, work.seed, course)
        _resume(training, path)
        training.set_modes()
        with work.progress.bar(course.label, training.steps) as bar:
            bar.advance(training.step)
            saved = time.monotonic()
            while training.step < training.steps:
                value = training.advance()
                bar.advance(1, note=f"loss {value:.3f}")
                if training.step == training.steps or time.monotonic() - saved >= checkpoint_seconds:
                    _save(training, path)
                    saved = time.monotonic()
        if training.average is not None:
            training.average.apply()
        module.eval().cpu()
    return {
        "steps": training.steps,
        "epochs": config.epochs,
        "images": len(training.images),
        "questions": len(data.samples),
        "losses": training.history,
    }


def time_steps(
    module: nn.Module,
    data: TrainingSet,
    loss: LossTerms,
    config: TrainingConfig,
    seed: int,
    course: Course = WHOLE_MODEL,
    *,
    steps: int = 5,
) -> float:
    """Seconds that the fastest of some training steps takes for each image; ``module`` is trained by these steps."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), flushed_denormals():
        torch.manual_seed(seed)
        module.to(training_device())
        training = Training(module, data, loss, config, seed, course)
        training.set_modes()
        training.advance()  # allocates the optimizer's state, and chooses kernels
        return fastest(training.advance, steps) / training.per_batch


def fastest(action: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several calls: what else the host does only adds to them."""
    clocks = [time.monotonic()]
    for _ in range(times):
        action()
        clocks.append(time.monotonic())
    return min(after - before for before, after in pairwise(clocks))


def _save(training: Training, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(training.state(), buffer)
    write_atomically(path, buffer.getvalue())


def _resume(training: Training, path: Path) -> None:
    if not path.is_file():
        return
    state = torch.load(path, map_location=training.device, weights_only=True)
    if state["identity"] == training.identity():
        training.restore(state)
