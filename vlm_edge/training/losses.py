"""Losses that pull a student towards its teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of a position where no loss is taken."""


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over the positions that count.

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2: T^2 keeps the gradient's
    size when T changes. Computed in float32.

    Args:
        student_logits: (..., classes).
        teacher_logits: the same shape; no gradient flows into it.
        temperature: T > 0, in units of logits.
        labels: (...) int64; positions that are :data:`IGNORED` don't count. None: all count.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
    return temperature**2 * _mean(divergence, labels)


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (..., classes) logits with (...) int64 labels, the mean over positions not :data:`IGNORED`."""
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def sample_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Each sample's cross-entropy, summed over its positions: (batch, positions, classes) and labels -> (batch,)."""
    losses = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(labels.shape).sum(dim=-1)


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over the teacher's mean square, so that 1 is as bad as answering zero; float32.

    Both (..., tokens, hidden) of one shape; no gradient flows into the teacher's. The hint of Romero et al. 2015,
    "FitNets", eq. 3, made free of the features' scale.
    """
    target = teacher.detach().float()
    return F.mse_loss(student.float(), target) / target.square().mean().clamp_min(1e-12)


def _mean(values: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None:
        return values.mean()
    counts = (labels != IGNORED).to(values)
    return (values * counts).sum() / counts.sum().clamp_min(1)
