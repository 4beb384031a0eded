"""Heads of Mllama's gated cross-attention: a key and all queries that read it, removed as exactly as masked."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tiny_mllama
import torch
from torch import Tensor

from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole, AttentionSite
from vlm_edge.families.loading import load_checkpoint, save_checkpoint
from vlm_edge.surgery.heads import head_importance, mask_heads, prune_heads

FAMILY: Any = FAMILIES["mllama"]
KEPT = ((1,), (0,))
"""Of two keys in each of two cross-attentions, with two queries each."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllama.checkpoint_of(tmp_path_factory.mktemp("mllama"))


def gated(model: Any) -> list[AttentionSite]:
    return [site for site in FAMILY.attention_sites(model) if site.role is AttentionRole.GATED_CROSS]


def inputs() -> dict[str, Tensor]:
    """Two rows, each an image of one tile or two, and six tokens."""
    generator = torch.Generator().manual_seed(5)
    seen = torch.zeros((2, 6, 1, 3), dtype=torch.int64)
    seen[0, 1:, 0, :1], seen[1, 2:, 0, :2] = 1, 1
    return {
        "input_ids": torch.randint(5, 100, (2, 6), generator=generator),
        "attention_mask": torch.ones((2, 6), dtype=torch.int64),
        "pixel_values": torch.randn((2, 1, 3, 3, 32, 32), generator=generator),
        "aspect_ratio_ids": torch.tensor([[1], [2]]),
        "aspect_ratio_mask": torch.tensor([[[1, 0, 0]], [[1, 1, 0]]]),
        "cross_attention_mask": seen,
    }


@torch.no_grad()
def by_components(model: Any) -> Tensor:
    """What the connector's and the decoder's modules make of random features and tokens."""
    features = torch.randn((2, 3, 17, 72), generator=torch.Generator().manual_seed(3))
    keys_and_values = FAMILY.connector(model)(features)
    generator = torch.Generator().manual_seed(4)
    mask = torch.randint(0, 2, (2, 5, 51), generator=generator)
    pasts = [torch.zeros((2, 2, 0, 8))] * 4
    ids = torch.randint(5, 100, (2, 5), generator=generator)
    shown = mask.amax(dim=-1)
    places = torch.arange(5).repeat(2, 1)
    logits: Tensor = FAMILY.decoder(model)(ids, torch.ones_like(ids), places, mask, shown, *keys_and_values, *pasts)[0]
    return logits


def test_sites_are_the_keys(checkpoint: Path) -> None:
    model: Any = load_checkpoint(checkpoint).model
    sites = gated(model)
    assert [site.path for site in sites] == [f"model.language_model.layers.{layer}.cross_attn" for layer in (1, 3)]
    assert {(site.num_heads, site.queries, site.component) for site in sites} == {(2, 2, "decoder")}
    paths = [site.path for site in FAMILY.attention_sites(model)]
    assert len(paths) == len(set(paths))


def test_pruned_is_masked(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    model: Any = loaded.model
    sites = gated(model)
    with torch.no_grad():
        dense = model(**inputs()).logits
        with ExitStack() as stack:
            for site, keep in zip(sites, KEPT, strict=True):
                stack.enter_context(mask_heads(model, site, keep))
            masked, composed = model(**inputs()).logits, by_components(model)
        for site, keep in zip(sites, KEPT, strict=True):
            prune_heads(model, site, keep)
        assert (dense - masked).abs().max() > 1e-2 * dense.abs().max()
        torch.testing.assert_close(model(**inputs()).logits, masked, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_components(model), composed, atol=1e-5, rtol=1e-5)
    assert [(site.num_heads, site.queries) for site in gated(model)] == [(1, 2)] * 2
    surgery = [
        {"op": "prune_heads", "site": site.path, "keep": list(keep)} for site, keep in zip(sites, KEPT, strict=True)
    ]
    save_checkpoint(tmp_path / "pruned", model, loaded, surgery)
    again: Any = load_checkpoint(tmp_path / "pruned").model
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs()).logits, masked, atol=1e-5, rtol=1e-5)


def test_importance_is_the_gates_gradient(checkpoint: Path) -> None:
    """A gate scales a head's columns of the output projection, so its gradient is theirs times their values."""
    model: Any = load_checkpoint(checkpoint).model
    sites = gated(model)

    def losses() -> Tensor:
        rows: Tensor = model(**inputs()).logits[:, -1].square().sum(dim=-1)
        return rows

    scores = head_importance(model, sites, [(2, lambda: losses().sum())])
    for site, score in zip(sites, scores, strict=True):
        weight = model.get_submodule(site.out).weight
        gates = [(torch.autograd.grad(losses()[row], weight)[0] * weight).sum(dim=0).view(2, 16) for row in range(2)]
        expected = torch.stack(gates).sum(dim=-1).abs().mean(dim=0).detach()
        torch.testing.assert_close(score.float(), expected, rtol=1e-3, atol=1e-3)
