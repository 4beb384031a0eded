"""Vision towers of language models: CLIP's and SigLIP's, up to the layer whose states the language model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionRole, AttentionSite, ComponentExport
from vlm_edge.processing.manifest import ImageProcessing

IMAGES = 2
"""Images in the example inputs."""
TOWERS = ("CLIPVisionModel", "SiglipVisionModel")


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


def vision_encoder_export(module: nn.Module, image: ImageProcessing) -> ComponentExport:
    """The graph of a module that takes ``pixel_values`` of one fixed size and gives ``image_features``."""
    pixels = torch.randn((IMAGES, 3, image.height, image.width), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (features,) = module.eval()(pixels)
    return ComponentExport(
        module=module,
        example={"pixel_values": pixels},
        dynamic={"pixel_values": {0: "images"}},
        output_shapes={"image_features": ("images", *features.shape[1:])},
    )


def connector_export(
    module: nn.Module,
    image_features: tuple[int | str, ...],
    more: Mapping[str, tuple[Tensor, dict[int, str]]],
) -> ComponentExport:
    """The graph of a module image_features (images, tokens, hidden) -> image_embeds (images, image_tokens, width), and
    whatever ``module.extra_outputs`` names. ``more``: further inputs, {name: (example, names of dynamic axes)}."""
    sizes = [IMAGES, *(int(size) for size in image_features[1:])]
    example = {"image_features": torch.randn(sizes, generator=torch.Generator().manual_seed(1))}
    dynamic: dict[str, dict[int, str]] = {"image_features": {0: "images"}}
    for name, (tensor, axes) in more.items():
        example[name], dynamic[name] = tensor, axes
    with torch.no_grad():
        outputs = module.eval()(*example.values())
    names = ("image_embeds", *getattr(module, "extra_outputs", ()))
    return ComponentExport(
        module=module,
        example=example,
        dynamic=dynamic,
        output_shapes={name: ("images", *tensor.shape[1:]) for name, tensor in zip(names, outputs, strict=True)},
    )


def tower_attention_sites(model: nn.Module, tower_path: str) -> list[AttentionSite]:
    """Every self-attention of a CLIP-like tower."""
    return [
        AttentionSite(
            path=path,
            role=AttentionRole.SELF,
            component="vision_encoder",
            num_heads=module.num_heads,
            head_dim=module.head_dim,
            q=f"{path}.q_proj",
            k=f"{path}.k_proj",
            v=f"{path}.v_proj",
            out=f"{path}.out_proj",
            num_heads_attr="num_heads",
        )
        for path, module in model.named_modules()
        if path.startswith(f"{tower_path}.") and path.endswith(".self_attn") and hasattr(module, "out_proj")
    ]
