"""BLIP for captions: Li et al. 2022, arXiv:2201.12086, as transformers' BlipForConditionalGeneration.

Two graphs. The decoder's cross-attention reads only the image's tokens, so its keys and values are computed once, at
the end of vision_encoder; the decoder is one graph for prefill (of a prompt such as "a picture of") and step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipForConditionalGeneration

from vlm_edge.checkpoints.processors import encode_texts
from vlm_edge.data.dataset import Sample
from vlm_edge.families.base import ComponentExport, TrainingBatch
from vlm_edge.families.blip import IGNORE_INDEX, BlipVqa
from vlm_edge.families.parts.blip_components import decoder_parts
from vlm_edge.families.parts.cached_decoder import BATCH, CachedDecoder, cross_key_values, cross_shapes, decoder_export
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind


class CaptionVisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> the decoder's cross_key_values.{layer}.key|value, each (images, heads,
    tokens, head_dim)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.layers = nn.ModuleList(decoder_parts(model)[1])

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return self.key_values(self.tower(pixel_values=pixel_values).last_hidden_state)

    def key_values(self, image_features: Tensor) -> tuple[Tensor, ...]:
        """From the image's tokens (images, tokens, hidden) on."""
        return cross_key_values(self.layers, image_features)  # type: ignore[arg-type]


class CaptionDecoder(CachedDecoder):
    """BLIP's caption decoder. No image token is padding, so nothing is masked."""

    def __init__(self, model: Any) -> None:
        super().__init__(*decoder_parts(model))


class BlipCaptioning(BlipVqa):
    """BlipForConditionalGeneration. Pruning, distillation, tokenizer and generation settings are as in VQA."""

    name = "blip-captioning"
    architectures: tuple[str, ...] = ("BlipForConditionalGeneration",)
    pipeline: PipelineKind = "captioning"

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        model: nn.Module = BlipForConditionalGeneration(BlipConfig.from_dict(dict(config)))
        return model

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        pixels = torch.randn((BATCH, 3, image.height, image.width), generator=torch.Generator().manual_seed(0))
        vision, decoder = CaptionVisionEncoder(model).eval(), CaptionDecoder(model).eval()
        with torch.no_grad():
            tokens = vision(pixels)[0].shape[2]
        layers = decoder_parts(model)[1]
        blip: Any = model
        return {
            "vision_encoder": ComponentExport(
                module=vision,
                example={"pixel_values": pixels},
                dynamic={"pixel_values": {0: "images"}},
                output_shapes=cross_shapes(layers, "images", tokens),
            ),
            "decoder": decoder_export(decoder, blip.text_decoder.cls.predictions.decoder.out_features, tokens),
        }

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """``generate`` from the start token alone; the texts are left alone."""
        blip: Any = model
        return blip.generate(pixel_values=pixel_values, **settings)

    def collate(
        self,
        samples: Sequence[Sample],
        pixel_values: Tensor,
        image_index: Tensor,
        checkpoint: Path,
        *,
        labels: Sequence[str] = (),
        prompts: Sequence[str] = (),
    ) -> TrainingBatch:
        """Each image's first caption (or the one given most): the decoder reads [DEC] a b and learns a b [SEP].

        The first of ``prompts`` is what every caption begins with; it is read and not learned.
        """
        batch = super().collate(samples, pixel_values, image_index, checkpoint)
        if not prompts:
            return batch
        assert batch.decoder_input_ids is not None
        assert batch.labels is not None
        ids, _ = encode_texts(checkpoint, self.text_processing(checkpoint), prompts[:1], special_tokens=False)
        begun = ids.expand(len(samples), -1)
        start, rest = batch.decoder_input_ids[:, :1], batch.decoder_input_ids[:, 1:]
        return replace(
            batch,
            decoder_input_ids=torch.cat([start, begun, rest], dim=1),
            labels=torch.cat([torch.full_like(begun, IGNORE_INDEX), batch.labels], dim=1),
        )

    def task_logits(self, model: nn.Module, image_features: Tensor, batch: TrainingBatch) -> Tensor:
        """Teacher-forced caption logits (captions, tokens, vocab), as the exported graphs compute them."""
        assert batch.decoder_input_ids is not None
        decoder = CaptionDecoder(model)
        crosses = [tensor[batch.image_index] for tensor in CaptionVisionEncoder(model).key_values(image_features)]
        ids = batch.decoder_input_ids
        empty = [crosses[0].new_zeros((len(ids), heads, 0, size)) for heads, size in _past_shapes(decoder)]
        logits: Tensor = decoder(ids, torch.ones_like(ids), *crosses, *empty)[0]
        return logits


def _past_shapes(decoder: CaptionDecoder) -> list[tuple[int, int]]:
    """(heads, head_dim) of every past's keys and values."""
    layers: list[Any] = list(decoder.layers)
    return [layer.sizes()[0] for layer in layers for _ in ("key", "value")]
