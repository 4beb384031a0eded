"""SigLIP 2 NaFlex: Tschannen et al. 2025, arXiv:2502.14786, section 2.4.2, as transformers' Siglip2Model.

SigLIP, but an image keeps its aspect: it is as many patches as fit into a fixed number, and its positions are resized
to its own grid. (SigLIP 2 at fixed resolution is a SiglipModel.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from transformers import Siglip2Config, Siglip2Model
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.parts.attention import attention, padding_mask, split_heads
from vlm_edge.families.parts.component import BATCH
from vlm_edge.families.parts.patch_positions import antialiased_weights, resized_positions
from vlm_edge.families.siglip import Siglip
from vlm_edge.processing.manifest import ImageProcessing, PatchRows


class VisionEncoder(nn.Module):
    """pixel_values (images, patches, values), pixel_attention_mask (images, patches), spatial_shapes (images, 2) ->
    image_embeds (images, dim), L2-normalised: attention pooling by a learnt query."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> tuple[Tensor]:
        tower: Any = self.tower
        embeddings = tower.embeddings
        patches = pixel_values.shape[1]
        places = resized_positions(embeddings.position_embedding.weight, spatial_shapes, patches, antialiased_weights)
        mask = padding_mask(pixel_attention_mask)
        hidden = embeddings.patch_embedding(pixel_values) + places
        hidden = tower.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        return (normalize(_pooled(tower.head, tower.post_layernorm(hidden), mask), dim=-1),)


def _pooled(head: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """The head's attention pooling over the patches that ``mask`` leaves: (images, width)."""
    module = head.attention
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    probe = head.probe.expand(hidden.shape[0], -1, -1)
    query, key, value = (
        split_heads(linear(states, weight, bias), module.head_dim)
        for states, weight, bias in zip((probe, hidden, hidden), weights, biases, strict=True)
    )
    drawn = module.out_proj(attention(query, key, value, mask, module.head_dim**-0.5))
    pooled: Tensor = drawn + head.mlp(head.layernorm(drawn))
    return pooled[:, 0]


class Siglip2NaFlex(Siglip):
    """Siglip2Model. Its positions follow each image, so no student of one size can take the tower's place; and
    transformers lower-cases its texts."""

    name = "siglip2-naflex"
    architectures: tuple[str, ...] = ("Siglip2Model",)
    config_class: Any = Siglip2Config
    model_class: Any = Siglip2Model
    image_processor_class: Any = Siglip2ImageProcessorPil
    vision_encoder_class: type[nn.Module] = VisionEncoder
    student_fits = False
    lowercase = True

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        """Every image as the processor's ``max_num_patches``, so that the graph has one size.

        Raises:
            VlmEdgeError: the processor doesn't cut the patches that the model was made for.
        """
        patch, processor = self.config(checkpoint).vision_config.patch_size, self.image_processor(checkpoint)
        if not processor.do_resize or processor.patch_size != patch:
            raise VlmEdgeError(
                f"{checkpoint}: the image processor must resize to whole patches of {patch} pixels; got "
                f"do_resize={processor.do_resize}, patch_size={processor.patch_size}",
                "set patch_size in preprocessor_config.json to the model's",
            )
        side = patch * max(1, int(processor.max_num_patches**0.5))
        rows = PatchRows(patch=patch, max_patches=processor.max_num_patches)
        return self.processing_of(checkpoint, processor, height=side, width=side, tiles=rows)

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        inputs: Mapping[str, Any] = processor(images=image, return_tensors="np")
        return inputs

    def vision_example(self, image: ImageProcessing) -> dict[str, Tensor]:
        rows = image.tiles
        assert isinstance(rows, PatchRows)
        assert rows.max_patches is not None
        patches, half = rows.max_patches, max(1, rows.max_patches // 2)
        generator = torch.Generator().manual_seed(0)
        seen = torch.ones((BATCH, patches), dtype=torch.int64)
        seen[-1, half:] = 0
        return {
            "pixel_values": torch.randn((BATCH, patches, 3 * rows.patch**2), generator=generator),
            "pixel_attention_mask": seen,
            "spatial_shapes": torch.tensor([[1, patches], [half, 1]]),
        }
