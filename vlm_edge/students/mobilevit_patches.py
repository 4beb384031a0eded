"""Patches of MobileViT (arXiv:2110.02178, section 3.1) and MobileViTv2 (arXiv:2206.02680) by reshape and transpose.

The values and their order are transformers' own. Version 1 there moves every value by itself, twice: with two threads
onnxruntime takes 40 times as long for that in 8 bits as with one, most of the INT8 student's time. Version 2 calls
torch's fold, which ONNX writes as Col2Im, and TensorRT's parser refuses that operator.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers.models.mobilevit.modeling_mobilevit import MobileViTLayer
from transformers.models.mobilevitv2.modeling_mobilevitv2 import MobileViTV2Layer


def use_plain_patches(model: nn.Module) -> None:
    """Change every MobileViT layer of ``model``, of version 1 or 2, in place."""
    for module in model.modules():
        if isinstance(module, MobileViTLayer):
            module.unfolding = MethodType(_unfolding, module)
            module.folding = MethodType(_folding, module)
        elif isinstance(module, MobileViTV2Layer):
            module.unfolding = MethodType(_unfolding_v2, module)
            module.folding = MethodType(_folding_v2, module)


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


def _unfolding_v2(layer: MobileViTV2Layer, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(B, C, H, W) -> (B, C, patch area, patches), and (H, W); rows and columns that fill no patch are left out."""
    batch, channels, height, width = features.shape
    tall, wide = layer.patch_height, layer.patch_width
    rows, columns = height // tall, width // wide
    whole = features[:, :, : rows * tall, : columns * wide].reshape(batch, channels, rows, tall, columns, wide)
    return whole.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels, tall * wide, rows * columns), (height, width)


def _folding_v2(layer: MobileViTV2Layer, patches: Tensor, output_size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`_unfolding_v2`, with zeros where no patch lies."""
    (batch, channels, _, _), (height, width) = patches.shape, output_size
    tall, wide = layer.patch_height, layer.patch_width
    rows, columns = height // tall, width // wide
    pixels = patches.reshape(batch, channels, tall, wide, rows, columns).permute(0, 1, 4, 2, 5, 3)
    features = pixels.reshape(batch, channels, rows * tall, columns * wide)
    missing = (0, width - columns * wide, 0, height - rows * tall)
    return nn.functional.pad(features, missing) if any(missing) else features
