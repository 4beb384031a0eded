"""LLaVA-NeXT (1.6): Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", as transformers'
LlavaNextForConditionalGeneration.

LLaVA 1.5 on tiles: an image is seen whole and again at the best of a few resolutions, cut into tiles. The embedding
that ends a row of patches is an output of the connector, and the runtime puts the rows together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from vlm_edge.checkpoints.chat_template import Fallback
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.llava import Llava
from vlm_edge.processing.manifest import AnyResTiles, ImageProcessing
from vlm_edge.processing.picture import Picture


class TileProjector(nn.Module):
    """image_features (images, tokens, hidden) -> image_embeds (images, tokens, width), and image_newline (images,
    width), the same for all."""

    outputs = ("image_embeds", "image_newline")

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.image_newline = model.model.image_newline

    def forward(self, image_features: Tensor) -> tuple[Tensor, ...]:
        newline = self.image_newline.repeat(image_features.shape[0], 1)
        return self.projector(image_features), newline


class LlavaNext(Llava):
    """LlavaNextForConditionalGeneration."""

    name = "llava-next"
    architectures: tuple[str, ...] = ("LlavaNextForConditionalGeneration",)
    config_class: Any = LlavaNextConfig
    model_class: Any = LlavaNextForConditionalGeneration
    image_processor_class: Any = LlavaNextImageProcessorPil
    fallback: Fallback | None = None

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        """Tiles of the tower's size; config.json's resolutions, which have to be the processor's."""
        processor, config = self.image_processor(checkpoint), self.config(checkpoint)
        resolutions = [tuple(size) for size in config.image_grid_pinpoints]
        if resolutions != [tuple(size) for size in processor.image_grid_pinpoints]:
            raise VlmEdgeError(
                f"{checkpoint}: image_grid_pinpoints: config.json and preprocessor_config.json differ",
                "copy both files from one source",
            )
        side = config.vision_config.image_size
        tiles = AnyResTiles(resolutions=tuple(resolutions), grid=side // config.vision_config.patch_size)
        return self.processing_of(checkpoint, processor, height=side, width=side, tiles=tiles)

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        return {"pixel_values": processor(images=image, return_tensors="np")["pixel_values"][0]}

    def connector(self, model: Any) -> nn.Module:
        return TileProjector(model)

    def model_inputs(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """Pictures side by side, filled up with empty tiles to the longest, and their sizes."""
        most = max(picture.tiles for picture in pictures)
        pixels = [picture.inputs["pixel_values"] for picture in pictures]
        padded = [np.pad(tiles, ((0, most - len(tiles)), (0, 0), (0, 0), (0, 0))) for tiles in pixels]
        return {
            "pixel_values": torch.from_numpy(np.stack(padded)),
            "image_sizes": torch.tensor([picture.size for picture in pictures]),
        }
