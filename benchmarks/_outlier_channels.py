"""Outlier channels put into a graph's norms, as trained transformers have them; tests use them too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vlm_edge.graphs.edit import constant
from vlm_edge.graphs.passes.smooth import rescale, smoothable


def add_outliers(model: ir.Model, *, channels: int = 4, factor: float = 64.0) -> int:
    """Make a few channels of a graph's norms ``factor`` times larger, undone in the weights behind them.

    Trained transformers have such channels (Dettmers et al. 2022, arXiv:2208.07339, section 4); they take the range of
    a whole tensor for themselves. Here they are those with the largest weights of the norm.

    Returns:
        The number of norms that were given outliers: those that linear layers read.
    """
    places, factors = smoothable(model), {}
    for place in places:
        gains = constant(place.norm.inputs[place.factors[0]])
        assert gains is not None
        divisors = np.ones(gains.size, np.float32)
        divisors[np.argsort(-np.abs(gains.reshape(-1)), kind="stable")[:channels]] /= np.float32(factor)
        factors[place.tensor] = divisors
    rescale(model, places, factors)
    return len(places)
