"""Patches taken by rows of channels equal transformers', bit for bit."""

from __future__ import annotations

import pytest
import torch
from transformers import MobileViTConfig, MobileViTModel
from transformers.models.mobilevit.modeling_mobilevit import MobileViTLayer

from vlm_edge.students.mobilevit_patches import use_rows_of_channels


def layer(patch_size: int) -> MobileViTLayer:
    config = MobileViTConfig(patch_size=patch_size, num_attention_heads=2)
    return MobileViTLayer(config, in_channels=6, out_channels=6, stride=1, hidden_size=6, num_stages=1)


@pytest.mark.parametrize(("height", "width", "patch_size"), [(4, 6, 2), (8, 4, 4), (5, 6, 2), (6, 7, 3), (6, 9, 3)])
def test_patches_and_what_they_are_put_together_to(height: int, width: int, patch_size: int) -> None:
    """Maps that patches don't fill, too: those are resized first."""
    ours, theirs = layer(patch_size), layer(patch_size)
    use_rows_of_channels(ours)
    features = torch.randn((3, 5, height, width), generator=torch.Generator().manual_seed(0))
    patches, info = ours.unfolding(features)
    wanted, wanted_info = theirs.unfolding(features)
    assert torch.equal(patches, wanted)
    changed = patches * 2 + 1
    assert torch.equal(ours.folding(changed, info), theirs.folding(changed, wanted_info))


def test_every_layer_of_a_model_is_changed() -> None:
    torch.manual_seed(0)
    model = MobileViTModel(
        MobileViTConfig(image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 12, 16, 16, 16, 32]),
        expand_output=False,
    ).eval()
    pixels = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(pixels).last_hidden_state
        use_rows_of_channels(model)
        got = model(pixels).last_hidden_state
    layers = [module for module in model.modules() if isinstance(module, MobileViTLayer)]
    assert len(layers) == 3
    assert all({"unfolding", "folding"} <= module.__dict__.keys() for module in layers)
    assert torch.equal(got, wanted)
