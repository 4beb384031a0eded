"""Head surgery against numpy's attention, finite differences and the masked dense model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionRole, AttentionSite
from vlm_edge.surgery.heads import (
    head_importance,
    heads_to_keep,
    mask_heads,
    normalised,
    prune_heads,
    scale_heads,
)


class Attention(nn.Module):
    """Multi-head attention whose query, key, value and output widths may all differ."""

    def __init__(self, heads: int, head_dim: int, widths: tuple[int, int, int, int], bias: bool = True) -> None:
        super().__init__()
        self.heads, self.inner = heads, heads * head_dim
        self.query, self.key, self.value = (nn.Linear(width, self.inner, bias=bias) for width in widths[:3])
        self.output = nn.Linear(self.inner, widths[3], bias=bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        projected = (self.query(query), self.key(key), self.value(value))
        q, k, v = (tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tensor in projected)
        context = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = self.output(context.reshape(*context.shape[:2], self.inner))
        return out


class Model(nn.Module):
    """One attention, in float64."""

    def __init__(self, heads: int, head_dim: int, widths: tuple[int, int, int, int], bias: bool, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.attention = Attention(heads, head_dim, widths, bias).double().eval()

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.attention(query, key, value)
        return out


def site_of(model: Model, head_dim: int) -> AttentionSite:
    names = {"q": "query", "k": "key", "v": "value", "out": "output"}
    return AttentionSite(
        path="attention",
        role=AttentionRole.CROSS,
        component="text_encoder",
        num_heads=model.attention.heads,
        head_dim=head_dim,
        num_heads_attr="heads",
        all_head_size_attr="inner",
        **{part: f"attention.{name}" for part, name in names.items()},
    )


def numpy_attention(model: Model, head_dim: int, keep: tuple[int, ...], inputs: list[Tensor]) -> np.ndarray[Any, Any]:
    """The sum over ``keep`` of each head's contribution (Michel et al. 2019, eq. 1), plus the output's bias."""
    attention = model.attention

    def projected(linear: nn.Linear, x: Tensor, head: int) -> np.ndarray[Any, Any]:
        rows = slice(head * head_dim, (head + 1) * head_dim)
        bias = 0.0 if linear.bias is None else linear.bias.detach().numpy()[rows]
        result: np.ndarray[Any, Any] = x.numpy() @ linear.weight.detach().numpy()[rows].T + bias
        return result

    total: Any = 0.0 if attention.output.bias is None else attention.output.bias.detach().numpy()
    for head in keep:
        q, k, v = (
            projected(linear, x, head)
            for linear, x in zip((attention.query, attention.key, attention.value), inputs, strict=True)
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(head_dim)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context = weights / weights.sum(axis=-1, keepdims=True) @ v
        columns = attention.output.weight.detach().numpy()[:, head * head_dim : (head + 1) * head_dim]
        total = total + context @ columns.T
    return np.asarray(total)


def inputs_for(widths: tuple[int, int, int, int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, widths[0]), (2, 5, widths[1]), (2, 5, widths[2])]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, tuple[int, int, int, int], bool, int, tuple[int, ...]]:
    heads, head_dim = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    widths = draw(st.tuples(*[st.integers(1, 9)] * 4))
    keep = draw(st.permutations(range(heads)))[: draw(st.integers(1, heads))]
    return heads, head_dim, widths, draw(st.booleans()), draw(st.integers(0, 99)), tuple(keep)


@settings(max_examples=60, deadline=None)
@given(cases())
@torch.no_grad()
def test_pruned_is_masked_is_the_sum_over_the_kept_heads(case: Any) -> None:
    heads, head_dim, widths, bias, seed, keep = case
    model, inputs = Model(heads, head_dim, widths, bias, seed), inputs_for(widths, seed)
    site = site_of(model, head_dim)
    expected = numpy_attention(model, head_dim, keep, inputs)
    with mask_heads(model, site, keep):
        masked = model(*inputs)
    prune_heads(model, site, keep)
    pruned = model(*inputs)
    np.testing.assert_allclose(masked, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(pruned, masked, rtol=0, atol=1e-10)
    assert (model.attention.heads, model.attention.inner) == (len(keep), len(keep) * head_dim)
    assert (
        sum(parameter.numel() for parameter in model.parameters())
        == len(keep) * head_dim * (sum(widths) + 3 * bias) + widths[3] * bias
    )


@torch.no_grad()
def test_pruning_in_float32_is_within_1e_5_of_masking() -> None:
    widths = (24, 40, 16, 12)
    model, inputs = Model(6, 8, widths, True, 3), [tensor.float() for tensor in inputs_for(widths, 3)]
    model.float()
    with mask_heads(model, site_of(model, 8), [0, 3, 4]):
        masked = model(*inputs)
    prune_heads(model, site_of(model, 8), [4, 0, 3])
    torch.testing.assert_close(model(*inputs), masked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("role", [AttentionRole.SELF, AttentionRole.CROSS])
@torch.no_grad()
def test_every_attention_of_a_transformers_blip_prunes_to_the_masked_model(tiny_blip: Path, role: str) -> None:
    from vlm_edge.families.loading import load_checkpoint

    loaded = load_checkpoint(tiny_blip)
    model: Any = loaded.model.double()
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(6, 100, (2, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    answer = torch.randint(6, 100, (2, 3), generator=generator)
    pixels = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)

    def logits() -> Tensor:
        image = model.vision_model(pixel_values=pixels).last_hidden_state
        question = model.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=image).last_hidden_state
        out: Tensor = model.text_decoder(
            input_ids=answer, encoder_hidden_states=question, encoder_attention_mask=mask, use_cache=False
        ).logits
        return out

    sites = [site for site in loaded.family.attention_sites(model) if site.role == role]
    assert len(sites) == 4
    for number, site in enumerate(sites):
        keep = [[0], [1, 3], [0, 1, 2], [3, 0]][number]
        before = logits()
        with mask_heads(model, site, keep):
            masked = logits()
        prune_heads(model, site, keep)
        torch.testing.assert_close(logits(), masked, rtol=0, atol=1e-10)
        assert not torch.allclose(masked, before, rtol=0, atol=1e-6)


def test_hooks_are_gone_after_masking_and_after_an_error() -> None:
    model = Model(4, 2, (3, 3, 3, 3), True, 0)
    site, inputs = site_of(model, 2), inputs_for((3, 3, 3, 3), 0)
    dense = model(*inputs)
    with mask_heads(model, site, [0]):
        assert not torch.equal(model(*inputs), dense)
    assert torch.equal(model(*inputs), dense)
    with pytest.raises(RuntimeError), mask_heads(model, site, [0]):
        model(*inputs_for((4, 4, 4, 4), 0))
    assert torch.equal(model(*inputs), dense)


def test_a_frozen_weight_stays_frozen_and_gradients_reach_the_others() -> None:
    model = Model(4, 2, (3, 3, 3, 3), True, 0)
    model.attention.key.requires_grad_(False)
    prune_heads(model, site_of(model, 2), [1, 2])
    model(*inputs_for((3, 3, 3, 3), 0)).sum().backward()
    assert not model.attention.key.weight.requires_grad
    gradient = model.attention.query.weight.grad
    assert gradient is not None
    assert gradient.shape == (4, 3)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([], "no head is kept"),
        ([0, 4], r"\[0, 4\] are to be kept, but there are 0..3"),
        ([-1, 0], "there are 0..3"),
        ([1, 1], "named twice"),
    ],
)
def test_a_wrong_keep_is_named_and_changes_nothing(keep: list[int], message: str) -> None:
    model = Model(4, 2, (3, 3, 3, 3), True, 0)
    site = site_of(model, 2)
    with pytest.raises(VlmEdgeError, match=message):
        prune_heads(model, site, keep)
    with pytest.raises(VlmEdgeError, match=message), mask_heads(model, site, keep):
        pass
    assert model.attention.query.weight.shape == (8, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere"}, "has no module 'nowhere'"),
        ({"v": "attention.values"}, "has no module 'attention.values'"),
        ({"out": "attention"}, "Attention, and no Linear"),
        ({"num_heads": 5}, "attention.query has 8 features, not 5 heads of 2"),
        ({"num_heads_attr": "n_heads"}, "no whole number 'n_heads'"),
        ({"all_head_size_attr": "query"}, "no whole number 'query'"),
    ],
)
def test_a_site_that_the_model_has_not_is_named_and_nothing_changes(change: dict[str, Any], message: str) -> None:
    model = Model(4, 2, (3, 3, 3, 3), True, 0)
    with pytest.raises(VlmEdgeError, match=message):
        prune_heads(model, dataclasses.replace(site_of(model, 2), **change), [0])
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(8, 3), (8,)] * 3 + [(3, 8), (3,)]


def test_importance_is_the_mean_absolute_slope_at_the_gates() -> None:
    widths = (4, 6, 6, 5)
    model, inputs = Model(3, 2, widths, True, 1), inputs_for(widths, 1)
    site = site_of(model, 2)

    def sample_losses() -> Tensor:
        losses: Tensor = model(*inputs).square().mean(dim=(1, 2))
        return losses

    (found,) = head_importance(model, [site], [(2, lambda: sample_losses().sum())])
    step = 1e-5
    expected = np.zeros(3)
    for head in range(3):
        values = []
        for sign in (1, -1):
            gate = torch.ones(3, dtype=torch.float64)
            gate[head] += sign * step
            with torch.no_grad(), scale_heads(model, site, gate):
                values.append(sample_losses())
        expected[head] = ((values[0] - values[1]) / (2 * step)).abs().mean()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_importance_does_not_depend_on_how_the_samples_are_batched() -> None:
    widths = (4, 4, 4, 4)
    model, inputs = Model(5, 2, widths, False, 2), inputs_for(widths, 2)
    site = site_of(model, 2)

    def loss(rows: slice) -> Callable[[], Tensor]:
        return lambda: model(*(tensor[rows] for tensor in inputs)).pow(3).sum()

    (whole,) = head_importance(model, [site], [(2, loss(slice(0, 2)))])
    (parts,) = head_importance(model, [site], [(1, loss(slice(0, 1))), (1, loss(slice(1, 2)))])
    torch.testing.assert_close(whole, parts)


def test_a_head_that_the_output_ignores_has_no_importance() -> None:
    model = Model(3, 2, (4, 4, 4, 4), True, 4)
    with torch.no_grad():
        model.attention.output.weight[:, 2:4] = 0
    inputs = inputs_for((4, 4, 4, 4), 4)
    (scores,) = head_importance(model, [site_of(model, 2)], [(2, lambda: model(*inputs).square().sum())])
    assert scores[1] == 0
    assert scores[0] > 0
    assert scores[2] > 0


def test_importance_without_samples_is_an_error() -> None:
    model = Model(3, 2, (4, 4, 4, 4), True, 4)
    with pytest.raises(VlmEdgeError, match="no sample"):
        head_importance(model, [site_of(model, 2)], [])


def test_normalised_scores_have_unit_norm_and_zeros_stay() -> None:
    first, second = normalised([torch.tensor([3.0, 4.0]), torch.zeros(2)])
    torch.testing.assert_close(first, torch.tensor([0.6, 0.8]))
    assert second.tolist() == [0.0, 0.0]


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=4), st.data())
def test_heads_to_keep_takes_the_best_and_leaves_no_site_empty(scores: list[list[int]], data: st.DataObject) -> None:
    count = data.draw(st.integers(len(scores), sum(map(len, scores))))
    keep = heads_to_keep([torch.tensor(site, dtype=torch.float64) for site in scores], count)
    assert sum(map(len, keep)) == count
    assert all(heads == tuple(sorted(set(heads))) and heads for heads in keep)
    removed, beyond_the_best = [], []
    for site, heads in zip(scores, keep, strict=True):
        kept = sorted((site[head] for head in heads), reverse=True)
        assert kept[0] == max(site)
        beyond_the_best += kept[1:]
        removed += [score for head, score in enumerate(site) if head not in heads]
    assert not removed or not beyond_the_best or min(beyond_the_best) >= max(removed)
