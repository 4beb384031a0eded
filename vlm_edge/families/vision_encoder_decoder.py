"""An image encoder and a text decoder with cross-attention: TrOCR (Li et al. 2021, arXiv:2109.10282), ViT-GPT2, as
transformers' VisionEncoderDecoderModel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from transformers.models.bart.modeling_bart import BartAttention
from transformers.models.trocr.modeling_trocr import TrOCRAttention
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlm_edge.checkpoints.generation_settings import read_generation
from vlm_edge.checkpoints.processors import read_image_processing, read_text_processing
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.cached_decoder import CrossKeyValues, cached_decoder_export
from vlm_edge.families.parts.component import SplitEncoder, image_component
from vlm_edge.families.parts.text_decoders import decoder_of
from vlm_edge.processing.manifest import Generation, ImageProcessing, PipelineKind, TextProcessing

ENCODERS = ("beit", "deit", "vit")
"""Encoders (model_type) that take an image of one size."""


class VisionEncoder(SplitEncoder):
    """pixel_values (images, 3, height, width) -> the decoder's cross_key_values.{layer}.key|value, each (images, heads,
    tokens, head_dim)."""

    def __init__(self, model: Any, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.projection = getattr(model, "enc_to_dec_proj", None) or nn.Identity()
        self.key_values = CrossKeyValues(layers)

    def states(self, pixel_values: Tensor) -> Tensor:
        states: Tensor = self.encoder(pixel_values=pixel_values).last_hidden_state
        return states

    def outputs(self, states: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.key_values(self.projection(states))
        return outputs


class VisionEncoderDecoder(Family):
    """VisionEncoderDecoderModel with a ViT, DeiT or BEiT before BERT, GPT-2, mBART or TrOCR's decoder."""

    name = "vision-encoder-decoder"
    architectures: tuple[str, ...] = ("VisionEncoderDecoderModel",)
    pipeline: PipelineKind = "captioning"
    config_class: Any = VisionEncoderDecoderConfig
    model_class: Any = VisionEncoderDecoderModel
    image_processor_class: Any = ViTImageProcessorPil
    vision_tower_path = "encoder"
    student_fits = True

    def build(self, config: Mapping[str, Any]) -> Any:
        kind = VisionEncoderDecoderConfig.from_dict(dict(config)).encoder.model_type
        if kind not in ENCODERS:
            raise VlmEdgeError(
                f"config.json: encoder: {kind!r} can't be exported; known: {', '.join(ENCODERS)}",
                "add it to vlm_edge/families/vision_encoder_decoder.py, as docs/writing-a-family.md says",
            )
        model = super().build(config)
        decoder_of(model.decoder)
        for module in filter(lambda each: isinstance(each, TrOCRAttention), model.decoder.modules()):
            module.__class__, module.config = BartAttention, model.decoder.config  # the same, with any number of heads
            module.is_causal = False  # its mask says so
        return model

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        return read_image_processing(checkpoint, self.image_processor_class, self.config(checkpoint).encoder)

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        return read_text_processing(checkpoint, self.config(checkpoint).decoder.max_position_embeddings)

    def generation(self, checkpoint: Path) -> Generation | None:
        config = self.config(checkpoint)
        return read_generation(checkpoint, config, config.decoder.max_position_embeddings)

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        decoder = decoder_of(model.decoder).eval()
        encoder = VisionEncoder(model, decoder.layers)
        vision = image_component(encoder, image, *encoder.key_values.axes("images"))
        tokens = int(next(iter(vision.output_shapes.values()))[2])
        vocabulary = model.decoder.config.vocab_size
        return {"vision_encoder": vision, "decoder": cached_decoder_export(decoder, vocabulary, tokens)}

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        return model.generate(pixel_values=inputs["pixel_values"], **settings)

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """The encoder's self-attention, the decoder's self- and cross-attention."""
        return named_sites(model, {"decoder": "decoder", "": "vision_encoder"})
