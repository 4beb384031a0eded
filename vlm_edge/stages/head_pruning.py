"""The steps of the prune stage, on torch models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vlm_edge.core.stage import StageWork
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionRole, AttentionSite
from vlm_edge.families.loading import LoadedCheckpoint
from vlm_edge.stages.training import Course, Minibatch, autocast, cache_features, train, training_device
from vlm_edge.stages.training_config import Recovery
from vlm_edge.stages.training_data import RowCache, TrainingSet
from vlm_edge.surgery.heads import head_importance, heads_to_keep, mask_heads, normalised, prune_heads
from vlm_edge.training.learner import Learner, TrainingBatch, rows_of
from vlm_edge.training.losses import answer_loss, distillation_loss, sample_losses

Scope = Literal["global", "site"]
PARITY = 1e-4
"""Largest difference between pruned and masked logits, over the largest logit or 1."""
QUESTIONS_PER_PASS = 32


def cross_attention_sites(checkpoint: LoadedCheckpoint) -> list[AttentionSite]:
    """The modules in which text attends to images or questions; of one that reads both together (ViLT), all.

    Raises:
        VlmEdgeError: the family has no such place.
    """
    roles = (AttentionRole.CROSS, AttentionRole.GATED_CROSS, AttentionRole.JOINT)
    sites = [site for site in checkpoint.family.attention_sites(checkpoint.model) if site.role in roles]
    if not sites:
        distil = ", and go on with distill" if checkpoint.family.vision_tower_path else ""
        raise VlmEdgeError(
            f"prune: {type(checkpoint.model).__name__} (family {checkpoint.family.name}) has no cross-attention",
            f"leave prune out of the recipe for this model{distil}",
        )
    return sites


def heads_left(heads: Sequence[int], fraction: float, scope: Scope) -> list[int]:
    """The number of heads that stay: one a site (``site``), or the total alone (``global``).

    ``fraction`` of them is removed, rounded to the nearest whole head.

    Raises:
        VlmEdgeError: that is no head, or it leaves a site without one.
    """
    groups = [(count, 1) for count in heads] if scope == "site" else [(sum(heads), len(heads))]
    left = [count - round(fraction * count) for count, _ in groups]
    if all(after == count for after, (count, _) in zip(left, groups, strict=True)):
        raise VlmEdgeError(
            f"prune: cross_attention.heads: {fraction:g} of {sum(heads)} heads in {len(heads)} modules is less than "
            f"one head{' a module' if scope == 'site' else ''}",
            f"remove at least {1 / max(count for count, _ in groups):.3g}, or leave prune out",
        )
    if any(after < least for after, (_, least) in zip(left, groups, strict=True)):
        most = min(1 - least / count for count, least in groups)
        raise VlmEdgeError(
            f"prune: cross_attention.heads: {fraction:g} leaves a module without a head "
            f"({len(heads)} modules with {', '.join(map(str, heads))} heads)",
            f"remove at most {most:.3g}: each module keeps one",
        )
    return left


def choose_heads(scores: Sequence[Tensor], left: Sequence[int], scope: Scope) -> list[tuple[int, ...]]:
    """The heads that stay, a tuple a site. ``left`` is :func:`heads_left`'s."""
    if scope == "global":
        return heads_to_keep(normalised(scores), left[0])
    return [heads_to_keep([score], count)[0] for score, count in zip(scores, left, strict=True)]


class CalibrationSamples:
    """The calibration samples' image features and questions: what importance and parity are taken on.

    The image features come once and as fast as they can; what is computed on them is float32.
    """

    def __init__(self, learner: Learner, data: TrainingSet, work: StageWork) -> None:
        learner.to(training_device())
        self._learner = learner
        self._work = work
        self._passes = list(self._encode(data))

    def _encode(self, data: TrainingSet) -> Iterator[tuple[Tensor, TrainingBatch]]:
        """(features, batch) of a few questions each, every question with an image of its own, so that each is a
        sample."""
        device = training_device()
        usable = data.usable_images
        per_pass = max(1, QUESTIONS_PER_PASS * len(usable) // len(data.samples))
        with self._work.progress.bar("calibration images", len(usable)) as bar, torch.no_grad():
            for start in range(0, len(usable), per_pass):
                images = usable[start : start + per_pass]
                seen, asked = data.seen(images).to(device), [data.rows[int(image)] for image in images]
                with autocast(device):
                    features = self._learner.encode(seen).float()
                index = np.repeat(np.arange(len(images)), [len(rows) for rows in asked])
                alone = [row[None] for rows in asked for row in rows]
                batch = data.batch(images[index], chosen=alone, pixels=False).to(device)
                yield rows_of(features, seen.rows, torch.from_numpy(index)), batch
                bar.advance(len(images))

    def importance(self, sites: Sequence[AttentionSite]) -> list[Tensor]:
        """:func:`head_importance` of the samples' cross-entropy."""

        def loss(features: Tensor, batch: TrainingBatch) -> Callable[[], Tensor]:
            return lambda: sample_losses(self._learner.logits(features, batch), batch.labels).sum()

        batches = ((len(batch.labels), loss(features, batch)) for features, batch in self._passes)
        with self._work.progress.bar("head importance", len(self._passes)) as bar:

            def counted() -> Iterator[tuple[int, Callable[[], Tensor]]]:
                for item in batches:
                    yield item
                    bar.advance()

            return head_importance(self._learner.model, sites, counted())

    def prune_and_check(self, sites: Sequence[AttentionSite], keep: Sequence[Sequence[int]]) -> None:
        """Prune the model in place, and hold it against the same model with its heads masked.

        Raises:
            VlmEdgeError: their logits differ by more than :data:`PARITY`.
        """
        self._work.facts["calibration_accuracy_dense"] = self.accuracy()
        with ExitStack() as stack:
            for site, heads in zip(sites, keep, strict=True):
                stack.enter_context(mask_heads(self._learner.model, site, heads))
            masked = self._logits()
        for site, heads in zip(sites, keep, strict=True):
            prune_heads(self._learner.model, site, heads)
        pairs = list(zip(self._logits(), masked, strict=True))
        error = max(float((pruned - reference).abs().max()) for pruned, reference in pairs)
        scale = max(1.0, *(float(reference.abs().max()) for reference in masked))
        self._work.facts["pruned_vs_masked_max_abs_error"] = error
        if not error <= PARITY * scale:
            raise VlmEdgeError(
                f"prune: the pruned model differs from the masked one by {error:.3g} in a logit "
                f"(allowed: {PARITY * scale:.3g})",
                "the family's attention_sites() may name wrong modules; please report this with the model's config",
            )
        self._work.facts["calibration_accuracy_pruned"] = self.accuracy()

    @torch.no_grad()
    def _logits(self) -> list[Tensor]:
        return [self._learner.logits(features, batch).float() for features, batch in self._passes]

    def accuracy(self) -> float:
        """The fraction of samples whose every answer token is the most likely one, teacher-forced."""
        self._learner.to(training_device())
        answers = zip(self._logits(), self._passes, strict=True)
        right = torch.cat([self._learner.right(logits, batch.labels) for logits, (_, batch) in answers])
        return float(right.double().mean())


def recover(pruned: Learner, teacher: Learner, data: TrainingSet, config: Recovery, work: StageWork) -> dict[str, Any]:
    """Train the pruned model in place on the teacher's answers and the labels; returns what happened, as facts."""
    device, tower = training_device(), pruned.tower
    anew = config.train == "all" or tower is None  # a model without a tower has nothing to compute once
    if tower is not None:
        tower.requires_grad_(config.train == "all")
    for module in pruned.kept():
        module.requires_grad_(False)
    teacher.model.requires_grad_(False)
    for learner in (pruned, teacher):
        learner.to(device)
    features = teacher_features = None
    if tower is not None:
        features = teacher_features = cache_features(teacher, data, "teacher_features", work)
    if not anew and not _same_tower(pruned, teacher):
        features = cache_features(pruned, data, "features", work)

    def loss(mini: Minibatch) -> dict[str, Tensor]:
        seen = pruned.encode(mini.batch) if anew else _rows(features, mini, device)
        logits = pruned.logits(seen, mini.batch)
        with torch.no_grad():
            told = teacher.encode(mini.batch) if teacher_features is None else _rows(teacher_features, mini, device)
            target = teacher.logits(told, mini.batch)
        divergence = distillation_loss(logits, target, temperature=config.temperature, labels=mini.batch.labels)
        return {
            "teacher": config.teacher_weight * divergence,
            "labels": (1 - config.teacher_weight) * answer_loss(logits, mini.batch.labels),
        }

    return train(pruned.model, data, loss, config, work, Course("recovery", pixels=anew))


def _rows(features: RowCache | None, mini: Minibatch, device: torch.device) -> Tensor:
    assert features is not None
    return torch.from_numpy(np.asarray(features[mini.images], dtype=np.float32)).to(device)


def _same_tower(one: Learner, other: Learner) -> bool:
    """True if both vision towers are equal, so that one's features are the other's."""
    path = one.family.vision_tower_path
    first, second = (item.model.get_submodule(path).state_dict() for item in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
