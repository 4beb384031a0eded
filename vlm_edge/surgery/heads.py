"""Remove attention heads: importance scores, the same model with heads masked, and the smaller model.

Multi-head attention is a sum over heads (Michel et al. 2019, eq. 1), so a head whose slice of the output projection's
input is zeroed contributes nothing, and removing its rows of q, k, v and its columns of out gives the same sum. The
output projection's bias belongs to no head and stays. One layer may compute several of q, k and v (GPT-2). Where
several queries read one key (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245), a head is a key with all
its queries, which follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from vlm_edge.errors import VlmEdgeError


class HeadLayout(Protocol):
    """The layers and attributes of one attention module's heads; ``families.base.AttentionSite`` describes each."""

    @property
    def path(self) -> str: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def q(self) -> str: ...
    @property
    def k(self) -> str: ...
    @property
    def v(self) -> str: ...
    @property
    def out(self) -> str: ...
    @property
    def num_heads_attr(self) -> str: ...
    @property
    def all_head_size_attr(self) -> str | None: ...
    @property
    def queries(self) -> int: ...
    @property
    def num_key_heads_attr(self) -> str | None: ...


def prune_heads(model: nn.Module, site: HeadLayout, keep: Sequence[int]) -> None:
    """Remove every head of ``site`` that is not in ``keep``, in place; head_dim and the softmax's scale stay.

    q, k and v (heads x head_dim, width) lose rows and biases, out (width, heads x head_dim) loses columns (of q and
    out queries x head_dim for each head); the widths may all differ. What names one layer for several of q, k and v
    finds them there one behind the other, in this order. The order of the remaining heads stays, whatever
    the order of ``keep``.

    Raises:
        VlmEdgeError: ``keep`` is empty, names a head twice or one that is not there, or the model has no such site.
            The model is then as it was.
    """
    kept = _checked(site, keep)
    module = _submodule(model, site, site.path)
    inputs = {path: _layer(model, site, path) for path in (site.q, site.k, site.v)}
    output = _layer(model, site, site.out, output=True)
    _check_counts(module, site)
    rows = _rows(kept, site.queries * site.head_dim)
    for path, layer in inputs.items():
        starts = np.cumsum([0, *(site.num_heads * width for width in _widths(site, path))])
        parts = zip(starts.tolist(), _widths(site, path), strict=False)
        _narrow(layer, torch.cat([start + _rows(kept, width) for start, width in parts]))
    _narrow(output, rows, inputs=True)
    setattr(module, site.num_heads_attr, len(kept) * site.queries)
    if site.num_key_heads_attr is not None:
        setattr(module, site.num_key_heads_attr, len(kept))
    if site.all_head_size_attr is not None:
        setattr(module, site.all_head_size_attr, len(rows))


@contextmanager
def scale_heads(model: nn.Module, site: HeadLayout, gate: Tensor) -> Iterator[None]:
    """While open, each head's contribution is multiplied by its gate.

    ``gate`` is (num_heads,), or (batch, num_heads) for a gate a sample; a gate of zero removes the head.
    """
    layer = _layer(model, site, site.out, output=True)

    def scale(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        context: Tensor = arguments[0]  # (batch, ..., num_heads * queries * head_dim)
        heads = context.reshape(*context.shape[:-1], site.num_heads, site.queries * site.head_dim)
        middle = (1,) * (heads.ndim - 3)
        factor = gate.to(heads).reshape(-1, *middle, site.num_heads, 1)
        return ((heads * factor).flatten(-2), *arguments[1:])

    hook = layer.register_forward_pre_hook(scale)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def mask_heads(model: nn.Module, site: HeadLayout, keep: Sequence[int]) -> Iterator[None]:
    """While open, the dense model answers as if ``site`` had only the heads ``keep``: pruning is checked against this.

    Raises:
        VlmEdgeError: as :func:`prune_heads`.
    """
    gate = torch.zeros(site.num_heads)
    gate[list(_checked(site, keep))] = 1.0
    with scale_heads(model, site, gate):
        yield


def head_importance(
    model: nn.Module, sites: Sequence[HeadLayout], batches: Iterable[tuple[int, Callable[[], Tensor]]]
) -> list[Tensor]:
    """The loss's dependence on each head: I_h = mean over x of |d L(x) / d gate_h|, (num_heads,) float64 a site.

    Michel, Levy & Neubig 2019, "Are Sixteen Heads Really Better than One?", eq. 2: a gate of one on each head, and
    the absolute value taken for each sample, so that signs don't cancel. :func:`normalised` makes sites comparable.

    ``batches`` gives (samples, loss), where calling ``loss`` runs the model, each site seeing the samples as its first
    dimension, and returns the *sum* of the samples' losses. One backward pass then gives every sample's gradient.
    The gradients of the model's own parameters stay untouched; dropout should be off.
    """
    device = next(model.parameters()).device
    totals = [torch.zeros(site.num_heads, dtype=torch.float64) for site in sites]
    count = 0
    for samples, loss in batches:
        gates = [torch.ones(samples, site.num_heads, device=device, requires_grad=True) for site in sites]
        with torch.enable_grad(), ExitStack() as stack:
            for site, gate in zip(sites, gates, strict=True):
                stack.enter_context(scale_heads(model, site, gate))
            gradients = torch.autograd.grad(loss(), gates)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient.double().abs().sum(dim=0).cpu()
        count += samples
    if not count:
        raise VlmEdgeError("head importance: there is no sample to take it on")
    return [total / count for total in totals]


def normalised(scores: Sequence[Tensor]) -> list[Tensor]:
    """Each site's scores (num_heads,) divided by their l2 norm (Michel et al. 2019, section 4.1); zeros stay zeros."""
    return [score / score.norm().clamp_min(torch.finfo(score.dtype).tiny) for score in scores]


def heads_to_keep(scores: Sequence[Tensor], count: int) -> list[tuple[int, ...]]:
    """The ``count`` most important heads over all sites together, ascending; every site keeps at least its best one.

    ``scores`` holds (num_heads,) a site, ``count`` is at least the number of sites. Ties go to the earlier site and
    head.
    """
    ranked = sorted(
        ((place, head) for place, score in enumerate(scores) for head in range(len(score))),
        key=lambda entry: (-float(scores[entry[0]][entry[1]]), entry),
    )
    chosen = {place: [next(head for at, head in ranked if at == place)] for place in range(len(scores))}
    spare = [(place, head) for place, head in ranked if head not in chosen[place]]
    for place, head in spare[: max(0, count - len(scores))]:
        chosen[place].append(head)
    return [tuple(sorted(heads)) for heads in chosen.values()]


def _checked(site: HeadLayout, keep: Sequence[int]) -> list[int]:
    kept = sorted(set(keep))
    if not kept:
        raise VlmEdgeError(f"{site.path}: no head is kept", f"keep at least one of 0..{site.num_heads - 1}")
    if len(kept) != len(keep):
        raise VlmEdgeError(f"{site.path}: a head is named twice: {list(keep)}", "name every head once")
    if kept[0] < 0 or kept[-1] >= site.num_heads:
        raise VlmEdgeError(
            f"{site.path}: heads {list(keep)} are to be kept, but there are 0..{site.num_heads - 1}",
            "after an earlier pruning the remaining heads count from 0",
        )
    return kept


def _rows(heads: Sequence[int], width: int) -> Tensor:
    """The features of these heads, of ``width`` each."""
    return torch.tensor([head * width + i for head in heads for i in range(width)])


def _selected(parameter: Tensor, dim: int, rows: Tensor) -> nn.Parameter:
    selected = parameter.detach().index_select(dim, rows.to(parameter.device))
    return nn.Parameter(selected, requires_grad=parameter.requires_grad)


def _submodule(model: nn.Module, site: HeadLayout, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise VlmEdgeError(
            f"attention site {site.path}: {type(model).__name__} has no module {path!r}",
            "give a site that the family's attention_sites(model) lists for this very model",
        ) from error


def _widths(site: HeadLayout, path: str) -> list[int]:
    """The features of a head in each of q, k and v that the layer at ``path`` computes."""
    widths = ((site.q, site.queries * site.head_dim), (site.k, site.head_dim), (site.v, site.head_dim))
    return [width for own, width in widths if own == path]


def _layer(model: nn.Module, site: HeadLayout, path: str, *, output: bool = False) -> nn.Linear | Conv1D:
    layer = _submodule(model, site, path)
    if not isinstance(layer, (nn.Linear, Conv1D)):
        raise VlmEdgeError(f"attention site {site.path}: {path} is {type(layer).__name__}, and no Linear")
    widths = [site.queries * site.head_dim] if output else _widths(site, path)
    found = layer.weight.shape[_axis(layer, inputs=output)]
    if found != site.num_heads * sum(widths):
        raise VlmEdgeError(
            f"attention site {site.path}: {path} has {found} features, not {site.num_heads} heads of {sum(widths)}",
            "list the sites again after a pruning: they tell how many heads are left",
        )
    return layer


def _axis(layer: nn.Linear | Conv1D, *, inputs: bool) -> int:
    """The axis of a layer's weight that its inputs, or its outputs, lie along."""
    return int(inputs) if isinstance(layer, nn.Linear) else int(not inputs)


def _narrow(layer: nn.Linear | Conv1D, rows: Tensor, *, inputs: bool = False) -> None:
    """Keep these of a layer's outputs, or of its inputs, in place."""
    layer.weight = _selected(layer.weight, _axis(layer, inputs=inputs), rows)
    if not inputs and layer.bias is not None:
        layer.bias = _selected(layer.bias, 0, rows)
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("nx", "nf")
    setattr(layer, names[0 if inputs else 1], len(rows))


def _check_counts(module: nn.Module, site: HeadLayout) -> None:
    for name in (site.num_heads_attr, site.all_head_size_attr, site.num_key_heads_attr):
        if name is not None and not isinstance(getattr(module, name, None), int):
            raise VlmEdgeError(f"attention site {site.path}: {type(module).__name__} has no whole number {name!r}")
