"""Qwen2-VL (Wang et al. 2024, arXiv:2409.12191) and Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923), as transformers'
Qwen2VLForConditionalGeneration and Qwen2_5_VLForConditionalGeneration.

Images keep their size: the vision encoder sees the patches of one image in groups that become one token each. Where
attention is kept to windows, the runtime gives the groups window by window, so the graph only compares window ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlm_edge.families.parts.attention import additive_mask, attention
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.families.parts.llm import Decoder, rotate
from vlm_edge.processing.manifest import ImageProcessing, PatchGrid
from vlm_edge.processing.picture import Picture

GROUPS = 6
"""Groups of patches in the example inputs."""


class PatchBlocks(nn.Module):
    """The blocks of the vision encoder, on the patches of one image."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.projection = tower.patch_embed.proj
        self.rotary = tower.rotary_pos_emb
        self.blocks = tower.blocks

    def encode(self, pixel_values: Tensor, patch_positions: Tensor, masks: Sequence[Tensor | None]) -> tuple[Tensor]:
        """pixel_values (groups, patches, values), patch_positions (groups, patches, 2), each block's mask ->
        (groups, patches, hidden)."""
        groups, patches, values = pixel_values.shape
        weight = self.projection.weight
        hidden = linear(pixel_values.view(1, groups * patches, values), weight.view(weight.shape[0], -1))
        rotary = self.rotary(hidden, patch_positions.view(groups * patches, 2))
        blocks: Any = self.blocks
        for block, mask in zip(blocks, masks, strict=True):
            hidden = hidden + _attended(block.attn, block.norm1(hidden), rotary, mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        return (hidden.view(groups, patches, -1),)


class PatchEncoder(PatchBlocks):
    """pixel_values (groups, patches, values), patch_positions (groups, patches, 2) of one image -> image_features
    (groups, patches, hidden)."""

    def forward(self, pixel_values: Tensor, patch_positions: Tensor) -> tuple[Tensor]:
        return self.encode(pixel_values, patch_positions, [None] * len(self.blocks))


class WindowEncoder(PatchBlocks):
    """As :class:`PatchEncoder`, with window_ids (groups,): most blocks attend within a window only."""

    def __init__(self, tower: Any) -> None:
        super().__init__(tower)
        self.unwindowed = tower.fullatt_block_indexes

    def forward(self, pixel_values: Tensor, patch_positions: Tensor, window_ids: Tensor) -> tuple[Tensor]:
        groups, patches, _ = pixel_values.shape
        of_patch = window_ids[:, None].expand(groups, patches).reshape(-1)
        mask = additive_mask((of_patch[:, None] == of_patch[None, :]).to(torch.float32))[None, None]
        masks = [None if index in self.unwindowed else mask for index in range(len(self.blocks))]
        return self.encode(pixel_values, patch_positions, masks)


def _attended(module: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """One vision attention, whose queries, keys and values come from one Linear; hidden (1, patches, width)."""
    batch, tokens, _ = hidden.shape
    parts = module.qkv(hidden).view(batch, tokens, 3, -1, module.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = parts[0], parts[1], parts[2]
    query, key = rotate(query, *rotary), rotate(key, *rotary)
    output: Tensor = module.proj(attention(query, key, value, mask, module.scaling))
    return output


class Merger(nn.Module):
    """image_features (groups, patches, hidden) -> image_embeds (groups, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.merger = model.model.visual.merger

    def forward(self, image_features: Tensor) -> tuple[Tensor]:
        normed = self.merger.ln_q(image_features)
        return (self.merger.mlp(normed.flatten(1)),)


class GridDecoder(Decoder):
    """As :class:`Decoder`, with three positions a token."""

    position_planes = 3


class Qwen2Vl(LanguageFamily):
    """Qwen2VLForConditionalGeneration. Images only: of videos there is no pipeline."""

    name = "qwen2-vl"
    architectures: tuple[str, ...] = ("Qwen2VLForConditionalGeneration",)
    vision_tower_path = "model.visual"
    image_token = "<|image_pad|>"
    config_class: Any = Qwen2VLConfig
    model_class: Any = Qwen2VLForConditionalGeneration
    image_processor_class: Any = Qwen2VLImageProcessorPil
    rows = "groups"

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        processor = self.image_processor(checkpoint)
        side = 8 * processor.patch_size * processor.merge_size
        tiles = PatchGrid(
            patch=processor.patch_size,
            merge=processor.merge_size,
            frames=processor.temporal_patch_size,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
            window=self.window(self.config(checkpoint).vision_config),
        )
        return self.processing_of(checkpoint, processor, height=side, width=side, tiles=tiles)

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        pixels = processor(images=image, return_tensors="np")["pixel_values"]
        return {"pixel_values": pixels.reshape(-1, processor.merge_size**2, pixels.shape[1])}

    def window(self, vision_config: Any) -> int | None:
        """Groups along the side of an attention window; None without windows."""
        return None

    def image_tokens(self, config: Any) -> int:
        """One for a group."""
        return 1

    def vision_encoder(self, model: Any) -> nn.Module:
        return PatchEncoder(model.model.visual)

    def connector(self, model: Any) -> nn.Module:
        return Merger(model)

    def decoder(self, model: Any) -> Decoder:
        return GridDecoder(model.model.language_model, model.get_output_embeddings(), model.config.image_token_id)

    def vision_example(self, image: ImageProcessing) -> dict[str, Tensor]:
        grid = image.tiles
        assert isinstance(grid, PatchGrid)
        generator = torch.Generator().manual_seed(0)
        patches, values = grid.merge**2, 3 * grid.frames * grid.patch**2
        windows = {} if grid.window is None else {"window_ids": torch.arange(GROUPS) // 2}
        return {
            "pixel_values": torch.randn((GROUPS, patches, values), generator=generator),
            "patch_positions": torch.randint(0, 9, (GROUPS, patches, 2), generator=generator),
        } | windows

    def model_inputs(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """All images' patches in the order of rows, and how many patches each has in time, height and width."""
        rows, sizes = [], []
        for picture in pictures:
            groups = picture.inputs["pixel_values"]
            ordered = groups if picture.order is None else groups[picture.order]
            merge = int(groups.shape[1] ** 0.5)
            rows.append(ordered.reshape(-1, groups.shape[2]))
            sizes.append((1, picture.grid[0] * merge, picture.grid[1] * merge))
        return {"pixel_values": torch.from_numpy(np.concatenate(rows)), "image_grid_thw": torch.tensor(sizes)}

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """``generate``, told which tokens are an image's; the model forgets the positions of an earlier call."""
        model.model.rope_deltas = None
        if "pixel_values" in inputs:
            kinds = (inputs["input_ids"] == settings["image_token_id"]).to(torch.int32)
            inputs = {**inputs, "mm_token_type_ids": kinds}
        return super().reference(model, inputs, **settings)


class Qwen25Vl(Qwen2Vl):
    """Qwen2_5_VLForConditionalGeneration: windowed attention in the vision encoder but for a few blocks."""

    name = "qwen2.5-vl"
    architectures: tuple[str, ...] = ("Qwen2_5_VLForConditionalGeneration",)
    config_class: Any = Qwen2_5_VLConfig
    model_class: Any = Qwen2_5_VLForConditionalGeneration

    def vision_encoder(self, model: Any) -> nn.Module:
        return WindowEncoder(model.model.visual)

    def window(self, vision_config: Any) -> int | None:
        return int(vision_config.window_size // vision_config.spatial_merge_size // vision_config.patch_size)
