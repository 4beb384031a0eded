"""Patches taken by reshape and transpose equal transformers', bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MobileViTConfig, MobileViTModel, MobileViTV2Config, MobileViTV2Model
from transformers.models.mobilevit.modeling_mobilevit import MobileViTLayer
from transformers.models.mobilevitv2.modeling_mobilevitv2 import MobileViTV2Layer

from vlm_edge.students.mobilevit_patches import use_plain_patches


def layer(version: int, patch_size: int) -> Any:
    if version == 1:
        config = MobileViTConfig(patch_size=patch_size, num_attention_heads=2)
        return MobileViTLayer(config, in_channels=6, out_channels=6, stride=1, hidden_size=6, num_stages=1)
    config = MobileViTV2Config(patch_size=patch_size)
    return MobileViTV2Layer(config, in_channels=16, out_channels=16, attn_unit_dim=16, stride=1)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("height", "width", "patch_size"), [(4, 6, 2), (8, 4, 4), (5, 6, 2), (6, 7, 3), (6, 9, 3)])
def test_patches_and_what_they_are_put_together_to(version: int, height: int, width: int, patch_size: int) -> None:
    """Maps that patches don't fill, too: version 1 resizes those first, version 2 leaves out what fills no patch."""
    ours, theirs = layer(version, patch_size), layer(version, patch_size)
    use_plain_patches(ours)
    features = torch.randn((3, 5, height, width), generator=torch.Generator().manual_seed(0))
    patches, info = ours.unfolding(features)
    wanted, wanted_info = theirs.unfolding(features)
    assert torch.equal(patches, wanted)
    changed = patches * 2 + 1
    assert torch.equal(ours.folding(changed, info), theirs.folding(changed, wanted_info))


@pytest.mark.parametrize("version", [1, 2])
def test_every_layer_of_a_model_is_changed(version: int) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 16, 16, 32]}
    model: Any = (
        MobileViTModel(MobileViTConfig(image_size=64, **sizes), expand_output=False)
        if version == 1
        else MobileViTV2Model(MobileViTV2Config(image_size=64, width_multiplier=0.25), expand_output=False)
    ).eval()
    pixels = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(pixels).last_hidden_state
        use_plain_patches(model)
        got = model(pixels).last_hidden_state
    layers = [module for module in model.modules() if isinstance(module, (MobileViTLayer, MobileViTV2Layer))]
    assert len(layers) == 3
    assert all({"unfolding", "folding"} <= module.__dict__.keys() for module in layers)
    assert torch.equal(got, wanted)
