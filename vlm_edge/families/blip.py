"""BLIP for visual question answering: Li et al. 2022, arXiv:2201.12086, as transformers' BlipForQuestionAnswering.

The decoder's cross-attention reads only the encoded question, so its keys and values are computed once, at the end of
text_encoder, and the decoder is one graph for prefill and step. The vision tower's self-attention computes query, key
and value in one fused Linear (``qkv``), so it is no :class:`AttentionSite`; the text encoder's and the decoder's self-
and cross-attention are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipForQuestionAnswering
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.checkpoints.generation_settings import read_settings
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention import padding_mask
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.cached_decoder import (
    CachedLayer,
    CrossKeyValues,
    MaskedDecoder,
    cached_decoder_export,
)
from vlm_edge.families.parts.component import image_component, question_component, text_example
from vlm_edge.families.parts.text_decoders import BertEmbeddings, BertLayer, bert_attention, bert_layer
from vlm_edge.processing.manifest import Generation, ImageProcessing, PipelineKind


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, tokens, hidden)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.tower(pixel_values=pixel_values).last_hidden_state,)


class TextEncoder(nn.Module):
    """input_ids, attention_mask (batch, question_tokens), image_features (batch, tokens, hidden) -> the decoder's
    cross-attention keys and values, layer by layer, each (batch, heads, question_tokens, head_dim)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings = model.text_encoder.embeddings
        self.layers = model.text_encoder.encoder.layer
        self.key_values = CrossKeyValues(decoder_parts(model)[1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> tuple[Tensor, ...]:
        mask = padding_mask(attention_mask)
        hidden = self.embeddings(input_ids=input_ids)
        for layer in self.layers:
            hidden = bert_layer(layer, hidden, mask, image_features)
        outputs: tuple[Tensor, ...] = self.key_values(hidden)
        return outputs

    def of_images(
        self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor, image_index: Tensor
    ) -> tuple[Tensor, ...]:
        """As ``forward`` for many questions about few images (images, tokens, hidden), ``image_index`` (questions,).

        Cross-attention to hundreds of image tokens costs far more than a question of ten tokens does, so an image's
        keys and values are computed once, and all questions about it attend to them as one long row. Every image gets
        as many slots as the most asked one; a slot without a question is computed and left out.
        """
        images, tokens = len(image_features), input_ids.shape[1]
        place, slots = question_slots(image_index, images)
        ids, seen = (input_ids.new_zeros(images * slots, tokens) for _ in range(2))
        ids[place], seen[place] = input_ids, attention_mask
        mask = padding_mask(seen)
        hidden: Tensor = self.embeddings(input_ids=ids)
        layers: Any = self.layers
        for layer in layers:
            hidden = bert_attention(layer.attention, hidden, hidden, mask)
            of_image = hidden.view(images, slots * tokens, -1)
            of_image = bert_attention(layer.crossattention, of_image, image_features, None)
            hidden = layer.feed_forward_chunk(of_image.view(images * slots, tokens, -1))
        outputs: tuple[Tensor, ...] = self.key_values(hidden[place])
        return outputs


def decoder_parts(model: Any) -> tuple[nn.Module, list[CachedLayer], nn.Module]:
    """Embeddings, layers and head of a BLIP's text decoder, as :class:`CachedDecoder` takes them."""
    text = model.text_decoder
    return BertEmbeddings(text.bert.embeddings), [BertLayer(layer) for layer in text.bert.encoder.layer], text.cls


class BlipVqa(Family):
    """BlipForQuestionAnswering. ``generate`` there lets the decoder look at a question's padding when questions of
    different lengths share a batch; here padding is masked, which is the same for every question asked alone."""

    name = "blip-vqa"
    architectures: tuple[str, ...] = ("BlipForQuestionAnswering",)
    pipeline: PipelineKind = "vqa"
    config_class: Any = BlipConfig
    model_class: Any = BlipForQuestionAnswering
    image_processor_class: Any = BlipImageProcessorPil
    vision_tower_path = "vision_model"
    student_fits = True
    inner_generate = True

    def generation(self, checkpoint: Path) -> Generation | None:
        """Start, stop and padding tokens as ``generate`` takes them from the text config: bos, sep and pad."""
        config = self.config(checkpoint)
        text = config.text_config
        return read_settings(checkpoint, config, inner=True).generation(
            start=text.bos_token_id,
            ends=[text.sep_token_id],
            pad=text.pad_token_id,
            positions=text.max_position_embeddings,
        )

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        vision, encoder = image_component(VisionEncoder(model), image, "image_features"), TextEncoder(model)
        text = text_example(model.text_encoder.embeddings.word_embeddings.num_embeddings)
        outputs = encoder.key_values.axes("batch", "question_tokens")
        vocabulary = model.text_decoder.cls.predictions.decoder.out_features
        decoder = MaskedDecoder(*decoder_parts(model)).eval()
        return {
            "vision_encoder": vision,
            "text_encoder": question_component(encoder, vision, text, outputs),
            "decoder": cached_decoder_export(decoder, vocabulary, "question_tokens"),
        }

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        return model.generate(**inputs, **settings)

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """Self- and cross-attention of the text encoder and the decoder; the fused vision tower has none."""
        return named_sites(model, {"text_decoder": "decoder", "": "text_encoder"})


def question_slots(image_index: Tensor, images: int) -> tuple[Tensor, int]:
    """Each question's row among ``images * slots`` rows, image by image and in order, and ``slots``."""
    counts = torch.bincount(image_index, minlength=images)
    order = torch.argsort(image_index, stable=True)
    first = counts.cumsum(0) - counts
    position = torch.empty_like(image_index)
    position[order] = torch.arange(len(image_index), device=image_index.device) - first[image_index[order]]
    slots = int(counts.max())
    return image_index * slots + position, slots
