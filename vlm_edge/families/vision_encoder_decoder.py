"""An image encoder and a text decoder with cross-attention: TrOCR (Li et al. 2021, arXiv:2109.10282), ViT-GPT2, as
transformers' VisionEncoderDecoderModel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlm_edge.checkpoints.config import read_config
from vlm_edge.checkpoints.generation_settings import read_generation
from vlm_edge.checkpoints.processors import read_image_processing, read_text_processing
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.cached_decoder import BATCH, CachedLayer, cross_key_values, cross_shapes, decoder_export
from vlm_edge.families.parts.text_decoders import decoder_of
from vlm_edge.processing.manifest import Generation, ImageProcessing, PipelineKind, TextProcessing

ENCODERS = ("beit", "deit", "vit")
"""Encoders (model_type) that take an image of one size."""


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> the decoder's cross_key_values.{layer}.key|value, each (images, heads,
    tokens, head_dim)."""

    def __init__(self, model: Any, layers: list[CachedLayer]) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.projection = getattr(model, "enc_to_dec_proj", None) or nn.Identity()
        self.layers = nn.ModuleList(layers)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        memory = self.projection(self.encoder(pixel_values=pixel_values).last_hidden_state)
        return cross_key_values(self.layers, memory)  # type: ignore[arg-type]


class VisionEncoderDecoder(Family):
    """VisionEncoderDecoderModel with a ViT, DeiT or BEiT before BERT, GPT-2, mBART or TrOCR's decoder."""

    name = "vision-encoder-decoder"
    architectures: tuple[str, ...] = ("VisionEncoderDecoderModel",)
    pipeline: PipelineKind = "captioning"
    vision_tower_path = "encoder"

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        settings = VisionEncoderDecoderConfig.from_dict(dict(config), attn_implementation="eager")
        kind = settings.encoder.model_type
        if kind not in ENCODERS:
            raise VlmEdgeError(
                f"config.json: encoder: {kind!r} can't be exported; known: {', '.join(ENCODERS)}",
                "add it to vlm_edge/families/vision_encoder_decoder.py, as docs/writing-a-family.md says",
            )
        model: nn.Module = VisionEncoderDecoderModel(settings)
        decoder_of(model.decoder)
        return model

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        return read_image_processing(checkpoint, ViTImageProcessorPil, _config(checkpoint).encoder)

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        return read_text_processing(checkpoint, _positions(_config(checkpoint)))

    def generation(self, checkpoint: Path) -> Generation | None:
        config = _config(checkpoint)
        return read_generation(checkpoint, config, _positions(config))

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        whole: Any = model
        decoder = decoder_of(whole.decoder).eval()
        layers: list[CachedLayer] = list(decoder.layers)  # type: ignore[arg-type]
        pixels = torch.randn((BATCH, 3, image.height, image.width), generator=torch.Generator().manual_seed(0))
        vision = VisionEncoder(whole, layers).eval()
        with torch.no_grad():
            tokens = vision(pixels)[0].shape[2]
        return {
            "vision_encoder": ComponentExport(
                module=vision,
                example={"pixel_values": pixels},
                dynamic={"pixel_values": {0: "images"}},
                output_shapes=cross_shapes(layers, "images", tokens),
            ),
            "decoder": decoder_export(decoder, whole.decoder.config.vocab_size, tokens),
        }

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        whole: Any = model
        return whole.generate(pixel_values=pixel_values, **settings)

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """The encoder's self-attention, the decoder's self- and cross-attention; GPT-2's are fused."""
        return named_sites(model, lambda path: "decoder" if path.startswith("decoder.") else "vision_encoder")


def _config(checkpoint: Path) -> VisionEncoderDecoderConfig:
    return VisionEncoderDecoderConfig.from_dict(read_config(checkpoint))


def _positions(config: VisionEncoderDecoderConfig) -> int:
    positions: int = config.decoder.max_position_embeddings
    return positions
