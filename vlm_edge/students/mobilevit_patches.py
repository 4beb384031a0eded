"""MobileViT's patches (arXiv:2110.02178, section 3.1) taken and put back a whole row of channels at a time.

transformers moves every value by itself, twice: with two threads onnxruntime takes 40 times as long for that in 8 bits
as with one, most of the INT8 student's time. The values are the same, in the same order.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers.models.mobilevit.modeling_mobilevit import MobileViTLayer


def use_rows_of_channels(model: nn.Module) -> None:
    """Change every MobileViT layer of ``model`` in place."""
    for module in model.modules():
        if isinstance(module, MobileViTLayer):
            module.unfolding = MethodType(_unfolding, module)
            module.folding = MethodType(_folding, module)


def _unfolding(layer: MobileViTLayer, features: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """(B, C, H, W) -> (B x patch area, patches, C), and what :func:`_folding` needs; with P x Q pixels a patch."""
    batch, channels, height, width = features.shape
    tall, wide = layer.patch_height, layer.patch_width
    if height % tall or width % wide:  # the original resizes the map first
        patches, info = MobileViTLayer.unfolding(layer, features)
        return patches, info
    rows, columns = height // tall, width // wide
    pixels = features.permute(0, 2, 3, 1).reshape(batch, rows, tall, columns, wide, channels)
    patches = pixels.permute(0, 2, 4, 1, 3, 5).reshape(batch * tall * wide, rows * columns, channels)
    return patches, {"batch_size": batch, "channels": channels, "rows": rows, "columns": columns}


def _folding(layer: MobileViTLayer, patches: Tensor, info: dict[str, Any]) -> Tensor:
    """The inverse of :func:`_unfolding`."""
    if "rows" not in info:
        features: Tensor = MobileViTLayer.folding(layer, patches, info)
        return features
    batch, channels, rows, columns = (info[name] for name in ("batch_size", "channels", "rows", "columns"))
    tall, wide = layer.patch_height, layer.patch_width
    pixels = patches.reshape(batch, tall, wide, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    return pixels.reshape(batch, rows * tall, columns * wide, channels).permute(0, 3, 1, 2)
