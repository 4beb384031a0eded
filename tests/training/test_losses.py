"""Losses against scipy and numpy, and the properties that the papers state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from vlm_edge.training.losses import (
    IGNORED,
    answer_loss,
    distillation_loss,
    feature_loss,
    sample_losses,
)


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_scipys_relative_entropy_times_the_squared_temperature(temperature: float) -> None:
    student, teacher = logits(4, 3, 7), logits(4, 3, 7, seed=1)
    expected = rel_entr(
        softmax(teacher.numpy() / temperature, axis=-1), softmax(student.numpy() / temperature, axis=-1)
    )
    found = distillation_loss(student, teacher, temperature=temperature)
    assert float(found) == pytest.approx(temperature**2 * expected.sum(axis=-1).mean(), rel=1e-5)


def test_distillation_leaves_ignored_positions_out() -> None:
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    labels = torch.tensor([[1, IGNORED, IGNORED], [2, 0, IGNORED]])
    found = distillation_loss(student, teacher, temperature=2.0, labels=labels)
    counted = labels != IGNORED
    expected = distillation_loss(student[counted], teacher[counted], temperature=2.0)
    torch.testing.assert_close(found, expected)
    nothing = distillation_loss(student, teacher, temperature=2.0, labels=torch.full((2, 3), IGNORED))
    assert float(nothing) == 0


@given(st.integers(0, 1000), st.floats(0.2, 20))
def test_distillation_is_never_negative_and_zero_for_the_same_answers(seed: int, temperature: float) -> None:
    student, teacher = logits(3, 6, seed=seed), logits(3, 6, seed=seed + 1)
    assert float(distillation_loss(student, teacher, temperature=temperature)) >= -1e-5
    shifted = distillation_loss(teacher + 5, teacher, temperature=temperature)
    assert float(shifted) == pytest.approx(0, abs=1e-3)


def test_a_hot_distillation_has_the_gradient_of_matched_logits() -> None:
    """Hinton et al. 2015, section 2.1, eq. 4: for high T, T^2 dC/dz_i is (z_i - v_i) / N when both have mean zero."""
    student, teacher = (tensor - tensor.mean(-1, keepdim=True) for tensor in (logits(1, 8), logits(1, 8, seed=1)))
    student = student.double().requires_grad_()
    distillation_loss(student.float(), teacher, temperature=1000.0).backward()
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), (student.detach() - teacher).numpy() / 8, atol=2e-3)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = logits(2, 4).requires_grad_(), logits(2, 4, seed=1).requires_grad_()
    for loss in (
        distillation_loss(student, teacher, temperature=2.0),
        feature_loss(student, teacher),
    ):
        loss.backward()
        assert student.grad is not None
        assert float(student.grad.abs().sum()) > 0
        assert teacher.grad is None


def test_answer_and_sample_losses_are_the_cross_entropy_of_the_labelled_positions() -> None:
    scores, labels = logits(3, 2, 5), torch.tensor([[1, 4], [0, IGNORED], [3, 2]])
    table = -log_softmax(scores.numpy(), axis=-1)
    each = [table[0, 0, 1] + table[0, 1, 4], table[1, 0, 0], table[2, 0, 3] + table[2, 1, 2]]
    np.testing.assert_allclose(sample_losses(scores, labels).numpy(), each, rtol=1e-5)
    assert float(answer_loss(scores, labels)) == pytest.approx(sum(each) / 5, rel=1e-5)


def test_losses_of_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher, labels = logits(2, 5).bfloat16(), logits(2, 5, seed=1).bfloat16(), torch.tensor([1, 3])
    found = [
        distillation_loss(student, teacher, temperature=2.0),
        answer_loss(student, labels),
        feature_loss(student, teacher),
    ]
    assert all(loss.dtype == torch.float32 for loss in found)
    torch.testing.assert_close(found[0], distillation_loss(student.float(), teacher.float(), temperature=2.0))


def test_feature_loss_is_the_error_over_the_teachers_mean_square() -> None:
    teacher = logits(2, 3, 4)
    assert float(feature_loss(torch.zeros_like(teacher), teacher)) == pytest.approx(1.0)
    assert float(feature_loss(teacher, teacher)) == 0
    torch.testing.assert_close(feature_loss(10 * teacher * 1.1, 10 * teacher), feature_loss(teacher * 1.1, teacher))
    assert float(feature_loss(teacher * 1.1, teacher)) == pytest.approx(0.01, rel=1e-4)
