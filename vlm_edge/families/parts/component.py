"""Components with example inputs: what the exporter traces, and the shapes of what they give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.families.base import ComponentExport
from vlm_edge.processing.manifest import TOTAL, ImageProcessing

BATCH, TEXT_TOKENS, PAST = 2, 7, 5
"""Sizes of the example inputs; all differ, so that no two dynamic dimensions are taken for one."""
QUESTION = {0: "batch", 1: "question_tokens"}
"""Axes of a question's ids and mask."""
Axes = Mapping[str, Mapping[int, str]]
"""The dynamic axes of inputs or outputs: {name: {axis: dimension}}."""
Inputs = Mapping[str, tuple[Tensor, Mapping[int, str]]]
"""Inputs as {name: (example, its dynamic axes)}."""


class Alone(nn.Module):
    """One module of a model as a component of its own: one tensor in, one out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, states: Tensor) -> tuple[Tensor]:
        return (self.module(states),)


class SplitEncoder(nn.Module):
    """A vision encoder that ends in another part of the model: pixel_values -> states (images, tokens, hidden), and
    those -> its outputs. Training computes a frozen tower's states once."""

    def states(self, pixel_values: Tensor) -> Tensor:
        """The tower's."""
        raise NotImplementedError

    def outputs(self, states: Tensor) -> tuple[Tensor, ...]:
        """The component's outputs."""
        raise NotImplementedError

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return self.outputs(self.states(pixel_values))


def component(
    module: nn.Module, example: Mapping[str, Tensor], inputs: Axes, outputs: Axes, may_be_empty: Iterable[str] = ()
) -> ComponentExport:
    """``module`` in eval mode, with the shapes of what it gives for ``example``; ``outputs`` are in its order."""
    with torch.no_grad():
        values = module.eval()(*example.values())
    shapes: dict[str, tuple[int | str, ...]] = {
        name: tuple(axes.get(axis, size) for axis, size in enumerate(value.shape))
        for (name, axes), value in zip(outputs.items(), values, strict=True)
    }
    return ComponentExport(module, example, inputs, shapes, frozenset(may_be_empty))


def random_pixels(image: ImageProcessing) -> Tensor:
    """(BATCH, 3, height, width) float32."""
    return torch.randn((BATCH, 3, image.height, image.width), generator=torch.Generator().manual_seed(0))


def image_component(module: nn.Module, image: ImageProcessing, *outputs: str) -> ComponentExport:
    """A module that takes ``pixel_values`` (images, 3, height, width) of one size."""
    return rows_component(module, {"pixel_values": random_pixels(image)}, outputs)


def rows_component(
    module: nn.Module, example: Mapping[str, Tensor], outputs: Iterable[str], rows: str = "images"
) -> ComponentExport:
    """A module whose inputs and outputs all have ``rows`` as their first dimension, and no other dynamic one."""
    return component(module, example, {name: {0: rows} for name in example}, {name: {0: rows} for name in outputs})


def text_example(vocabulary: int, tokens: int = TEXT_TOKENS, *, least: int = 0) -> dict[str, Tensor]:
    """input_ids, random from ``least`` on, and attention_mask (BATCH, tokens); the last row's last two are padding."""
    ids = torch.randint(least, vocabulary, (BATCH, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def image_features_like(vision: ComponentExport) -> Tensor:
    """Random ``image_features`` of the shape that a vision encoder gives for its example."""
    first = next(iter(vision.example.values())).shape[0]
    sizes = [int(size) for size in vision.output_shapes["image_features"][1:]]
    return torch.randn((first, *sizes), generator=torch.Generator().manual_seed(1))


def question_component(
    module: nn.Module, vision: ComponentExport, text: dict[str, Tensor], outputs: Axes
) -> ComponentExport:
    """A module that takes a question's input_ids and attention_mask, and image_features (batch, ...)."""
    example = text | {"image_features": image_features_like(vision)}
    return component(module, example, dict.fromkeys(text, QUESTION) | {"image_features": {0: "batch"}}, outputs)


def cache_names(prefix: str, layers: Iterable[int]) -> list[str]:
    """``PREFIX.{layer}.key`` and ``.value``, layer by layer."""
    return [f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")]


def cache_example(
    prefix: str, shapes: Mapping[int, tuple[int, int]], tokens: int, axes: Mapping[int, str]
) -> dict[str, tuple[Tensor, Mapping[int, str]]]:
    """Random keys and values (BATCH, heads, tokens, head_dim) of layers, ``shapes`` = {layer: (heads, head_dim)}."""
    generator = torch.Generator().manual_seed(3)
    sizes = [size for size in shapes.values() for _ in ("key", "value")]
    return {
        name: (torch.randn((BATCH, heads, tokens, head_dim), generator=generator), axes)
        for name, (heads, head_dim) in zip(cache_names(prefix, shapes), sizes, strict=True)
    }


def decoder_export(
    module: Any, inputs: Inputs, logits: Mapping[int, str], may_be_empty: Iterable[str] = ()
) -> ComponentExport:
    """The ``decoder`` component: one graph for prefill and step.

    Args:
        module: takes ``inputs``, then past_key_values.{layer}.key|value as ``module.cache_shapes()`` says, and gives
            the logits and present.{layer}.key|value.
        inputs: what comes before the past.
        logits: dynamic axes of the logits.
        may_be_empty: dimensions that can be 0 beside ``past``.
    """
    shapes: dict[int, tuple[int, int]] = module.cache_shapes()
    every = {**inputs, **cache_example("past_key_values", shapes, PAST, {0: "batch", 2: "past"})}
    presents = {name: {0: "batch", 2: TOTAL} for name in cache_names("present", shapes)}
    return component(
        module,
        {name: tensor for name, (tensor, _) in every.items()},
        {name: axes for name, (_, axes) in every.items()},
        {"logits": logits} | presents,
        {"past", *may_be_empty},
    )
