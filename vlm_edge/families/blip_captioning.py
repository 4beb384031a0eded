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

from vlm_edge.data.dataset import Sample
from vlm_edge.families.base import ComponentExport, TrainingBatch
from vlm_edge.families.blip import IGNORE_INDEX, BlipVqa
from vlm_edge.families.blip_components import BATCH, NEW, PAST, Decoder, cache_names, cache_shapes, key_value
from vlm_edge.families.processors import encode_texts
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind


class CaptionVisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> the decoder's cross_key_values.{layer}.key|value, each (images, heads,
    tokens, head_dim)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.cross_attentions = nn.ModuleList([layer.crossattention for layer in _layers(model)])

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return self.key_values(self.tower(pixel_values=pixel_values).last_hidden_state)

    def key_values(self, image_features: Tensor) -> tuple[Tensor, ...]:
        """From the image's tokens (images, tokens, hidden) on."""
        return tuple(tensor for cross in self.cross_attentions for tensor in key_value(cross, image_features))


class CaptionDecoder(nn.Module):
    """input_ids (batch, new), cross_key_values.{layer}.key|value, past_key_values.{layer}.key|value -> logits
    (batch, new, vocab), present.{layer}.key|value. No image token is padding, so nothing is masked."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = Decoder(model)

    def forward(self, input_ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        return self.decoder.decode(input_ids, None, caches)


class BlipCaptioning(BlipVqa):
    """BlipForConditionalGeneration. Pruning, distillation, tokenizer and generation settings are as in VQA."""

    name = "blip-captioning"
    architectures: tuple[str, ...] = ("BlipForConditionalGeneration",)
    pipeline: PipelineKind = "captioning"
    task_kinds: tuple[str, ...] = ("captioning",)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        model: nn.Module = BlipForConditionalGeneration(BlipConfig.from_dict(dict(config)))
        return model

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        vision = _vision_encoder_export(model, image)
        cross_shapes = list(vision.output_shapes.values())
        return {"vision_encoder": vision, "decoder": _decoder_export(model, image_tokens=int(cross_shapes[0][2]))}

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
        empty = [crosses[0].new_zeros((len(ids), heads, 0, size)) for heads, size in _past_shapes(model)]
        logits: Tensor = decoder(ids, *crosses, *empty)[0]
        return logits


def _layers(model: Any) -> Any:
    return model.text_decoder.bert.encoder.layer


def _past_shapes(model: Any) -> list[tuple[int, int]]:
    return cache_shapes([layer.attention for layer in _layers(model)])


def _vision_encoder_export(model: Any, image: ImageProcessing) -> ComponentExport:
    pixels = torch.randn((BATCH, 3, image.height, image.width), generator=torch.Generator().manual_seed(0))
    module = CaptionVisionEncoder(model).eval()
    with torch.no_grad():
        crosses = module(pixels)
    names = cache_names("cross_key_values", len(crosses) // 2)
    return ComponentExport(
        module=module,
        example={"pixel_values": pixels},
        dynamic={"pixel_values": {0: "images"}},
        output_shapes={name: ("images", *tensor.shape[1:]) for name, tensor in zip(names, crosses, strict=True)},
    )


def _decoder_export(model: Any, image_tokens: int) -> ComponentExport:
    generator = torch.Generator().manual_seed(2)
    layers = _layers(model)
    cross_shapes = cache_shapes([layer.crossattention for layer in layers])
    cross_names, past_names, present_names = (
        cache_names(prefix, len(layers)) for prefix in ("cross_key_values", "past_key_values", "present")
    )
    head = model.text_decoder.cls.predictions.decoder
    example = {"input_ids": torch.randint(0, head.out_features, (BATCH, NEW), generator=generator)}
    dynamic: dict[str, dict[int, str]] = {"input_ids": {0: "batch", 1: "new"}}
    for name, (heads, size) in zip(cross_names, cross_shapes, strict=True):
        example[name] = torch.randn((BATCH, heads, image_tokens, size), generator=generator)
        dynamic[name] = {0: "batch"}
    for name, (heads, size) in zip(past_names, _past_shapes(model), strict=True):
        example[name] = torch.randn((BATCH, heads, PAST, size), generator=generator)
        dynamic[name] = {0: "batch", 2: "past"}
    presents = zip(present_names, _past_shapes(model), strict=True)
    return ComponentExport(
        module=CaptionDecoder(model).eval(),
        example=example,
        dynamic=dynamic,
        output_shapes={"logits": ("batch", "new", head.out_features)}
        | {name: ("batch", heads, "past + new", size) for name, (heads, size) in presents},
        may_be_empty=frozenset({"past"}),
    )
