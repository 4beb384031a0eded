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
from transformers import BlipForConditionalGeneration

from vlm_edge.checkpoints.processors import encode_texts
from vlm_edge.data.dataset import Sample
from vlm_edge.families.base import ComponentExport, TrainingBatch
from vlm_edge.families.blip import IGNORE_INDEX, BlipVqa, decoder_parts
from vlm_edge.families.parts.cached_decoder import CachedDecoder, CrossKeyValues, cached_decoder_export
from vlm_edge.families.parts.component import image_component
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind


class CaptionVisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> the decoder's cross_key_values.{layer}.key|value, each (images, heads,
    tokens, head_dim)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.key_values = CrossKeyValues(decoder_parts(model)[1])

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.key_values(self.tower(pixel_values=pixel_values).last_hidden_state)
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
        spec = self.text_processing(checkpoint)
        assert spec is not None
        ids, _ = encode_texts(checkpoint, spec, prompts[:1], special_tokens=False)
        begun = ids.expand(len(samples), -1)
        start, rest = batch.decoder_input_ids[:, :1], batch.decoder_input_ids[:, 1:]
        return replace(
            batch,
            decoder_input_ids=torch.cat([start, begun, rest], dim=1),
            labels=torch.cat([torch.full_like(begun, IGNORE_INDEX), batch.labels], dim=1),
        )

    def task_logits(self, model: Any, image_features: Tensor, batch: TrainingBatch) -> Tensor:
        """Teacher-forced caption logits (captions, tokens, vocab), as the exported graphs compute them."""
        ids = batch.decoder_input_ids
        assert ids is not None
        embeddings, layers, head = decoder_parts(model)
        decoder = CachedDecoder(embeddings, layers, head)
        crosses = [tensor[batch.image_index] for tensor in CrossKeyValues(layers)(image_features)]
        shapes = [shape for shape in decoder.cache_shapes().values() for _ in ("key", "value")]
        empty = [crosses[0].new_zeros((len(ids), heads, 0, size)) for heads, size in shapes]
        logits: Tensor = decoder(ids, torch.ones_like(ids), *crosses, *empty)[0]
        return logits
