"""Vision towers of language models: CLIP's and SigLIP's, up to the layer whose states the language model is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.errors import VlmEdgeError

TOWERS = ("CLIPVisionModel", "IdeficsVisionTransformer", "SiglipVisionModel")


class TowerStates(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, tokens, hidden): the hidden states that
    ``layers`` name, beside each other; 0 is the embedding, and negative ones count from the last.

    Layers behind the last that is read are left out. ``skip`` drops that many tokens at the start (the class token).
    ``normalised``: the last layer's states go through the tower's last norm.
    """

    def __init__(self, tower: Any, layers: Sequence[int], skip: int, *, normalised: bool = False) -> None:
        super().__init__()
        if type(tower).__name__ not in TOWERS:
            raise VlmEdgeError(
                f"vision_config: the vision tower is a {type(tower).__name__}; known: {', '.join(TOWERS)}",
                "add how its hidden states are made to vlm_edge/families/parts/tower_states.py",
            )
        count = len(tower.encoder.layers) + 1
        self.wanted = [layer % count for layer in layers]
        self.embeddings = tower.embeddings
        self.start = getattr(tower, "pre_layrnorm", nn.Identity())
        self.layers = nn.ModuleList(list(tower.encoder.layers)[: max(self.wanted)])
        self.skip = skip
        self.end = tower.post_layernorm if normalised else nn.Identity()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        states = [self.start(self.embeddings(pixel_values))]
        for layer in self.layers:
            states.append(layer(states[-1], attention_mask=None))
        states[-1] = self.end(states[-1])
        picked = [states[index][:, self.skip :] for index in self.wanted]
        return (picked[0] if len(picked) == 1 else torch.cat(picked, dim=-1),)
