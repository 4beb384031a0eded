"""Torch as an engine: a component's own module, for comparison. The runtime never imports this file."""

from __future__ import annotations

import torch
from torch import nn

from vlm_edge.engines.base import Array, Feed
from vlm_edge.engines.feed import check_feed
from vlm_edge.processing.manifest import Component


class TorchEngine:
    """Runs ``module(*inputs)``, which returns a tuple in the order of ``component.outputs``, in eval mode.

    Args:
        module: a component as ``Family.components`` gives it.
        component: its inputs and outputs, in the module's order.
        device: where it runs.
    """

    name = "torch"

    def __init__(self, module: nn.Module, component: Component, *, device: str = "cpu") -> None:
        self._module = module.eval().to(device)
        self.inputs, self.outputs = component.inputs, component.outputs
        self._device = device

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Run once; see :class:`vlm_edge.engines.base.Engine`."""
        check_feed(feed, self.inputs, "torch")
        tensors = [torch.from_numpy(feed[name]).to(self._device) for name in self.inputs]
        with torch.inference_mode():
            values = self._module(*tensors)
        return {name: value.cpu().numpy() for name, value in zip(self.outputs, values, strict=True)}
