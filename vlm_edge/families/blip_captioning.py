"""BLIP for captions: Li et al. 2022, arXiv:2201.12086, as transformers' BlipForConditionalGeneration.

Two graphs. The decoder's cross-attention reads only the image's tokens, so its keys and values are computed once, at
the end of vision_encoder; the decoder is one graph for prefill (of a prompt such as "a picture of") and step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import BlipForConditionalGeneration

from vlm_edge.families.base import ComponentExport
from vlm_edge.families.blip import BlipVqa, decoder_parts
from vlm_edge.families.parts.cached_decoder import CachedDecoder, CrossKeyValues, cached_decoder_export
from vlm_edge.families.parts.component import SplitEncoder, image_component
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind


class CaptionVisionEncoder(SplitEncoder):
    """pixel_values (images, 3, height, width) -> the decoder's cross_key_values.{layer}.key|value, each (images, heads,
    tokens, head_dim)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.key_values = CrossKeyValues(decoder_parts(model)[1])

    def states(self, pixel_values: Tensor) -> Tensor:
        states: Tensor = self.tower(pixel_values=pixel_values).last_hidden_state
        return states

    def outputs(self, states: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.key_values(states)
        return outputs


class BlipCaptioning(BlipVqa):
    """BlipForConditionalGeneration. Pruning, distillation, tokenizer and generation settings are as in VQA."""

    name = "blip-captioning"
    architectures: tuple[str, ...] = ("BlipForConditionalGeneration",)
    pipeline: PipelineKind = "captioning"
    model_class: Any = BlipForConditionalGeneration

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        encoder = CaptionVisionEncoder(model)
        vision = image_component(encoder, image, *encoder.key_values.axes("images"))
        tokens = int(next(iter(vision.output_shapes.values()))[2])
        vocabulary = model.text_decoder.cls.predictions.decoder.out_features
        decoder = CachedDecoder(*decoder_parts(model)).eval()  # no image token is padding, so nothing is masked
        return {"vision_encoder": vision, "decoder": cached_decoder_export(decoder, vocabulary, tokens)}

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """``generate`` from the start token alone; the texts are left alone."""
        return model.generate(pixel_values=inputs["pixel_values"], **settings)
