"""BLIP for visual question answering: Li et al. 2022, arXiv:2201.12086, as transformers' BlipForQuestionAnswering.

The decoder's cross-attention reads only the encoded question, so its keys and values are computed once, at the end of
text_encoder, and the decoder is one graph for prefill and step. The vision tower's self-attention computes query, key
and value in one fused Linear (``qkv``), so it is no :class:`AttentionSite`; the text encoder's and the decoder's self-
and cross-attention are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipForQuestionAnswering
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.checkpoints.generation_settings import read_settings
from vlm_edge.checkpoints.processors import encode_texts
from vlm_edge.data.dataset import Sample
from vlm_edge.families.base import AttentionSite, ComponentExport, Family, TrainingBatch
from vlm_edge.families.parts.attention import additive_mask, padding_mask
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

IGNORE_INDEX = -100


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

    def encode_image(self, model: Any, pixel_values: Tensor) -> Tensor:
        features: Tensor = model.get_submodule(self.vision_tower_path)(pixel_values=pixel_values).last_hidden_state
        return features

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
        """Questions, and each sample's most given answer: the decoder reads [DEC] a b and learns a b [SEP]."""
        spec, generation = self.text_processing(checkpoint), self.generation(checkpoint)
        assert spec is not None
        assert generation is not None
        input_ids, attention_mask = encode_texts(checkpoint, spec, [sample.text for sample in samples])
        answers = [Counter(sample.answers).most_common(1)[0][0] for sample in samples]
        answer_ids, answer_mask = encode_texts(checkpoint, spec, answers, special_tokens=False)
        count, length = answer_ids.shape
        decoder_input_ids = torch.full((count, length + 1), generation.pad_token_id)
        decoder_input_ids[:, 0] = generation.start_token_id
        decoder_input_ids[:, 1:] = answer_ids
        targets = torch.full((count, length + 1), IGNORE_INDEX)
        targets[:, :-1][answer_mask == 1] = answer_ids[answer_mask == 1]
        targets[torch.arange(count), answer_mask.sum(1)] = generation.eos_token_id
        return TrainingBatch(pixel_values, image_index, input_ids, attention_mask, decoder_input_ids, targets)

    def task_logits(self, model: Any, image_features: Tensor, batch: TrainingBatch) -> Tensor:
        """Teacher-forced answer logits (questions, answer_tokens, vocab), as the exported graphs compute them."""
        return answer_logits(model, image_features, batch)


def answer_logits(model: Any, image_features: Tensor, batch: TrainingBatch) -> Tensor:
    """Teacher-forced logits (questions, answer_tokens, vocab) of many questions about few images (images, tokens,
    hidden), as the exported graphs compute them.

    Cross-attention to hundreds of image tokens costs far more than a question of ten tokens does, so an image's keys
    and values are computed once, and all questions about it attend to them as one long row. transformers' ``forward``
    repeats the image for every question, and (5.23) drops the mask on the way into the decoder's cross-attention, so
    that a question padded in a batch gets another answer than alone; here padding is masked, as in the exported graph.
    """
    question = encode_questions(model, image_features, batch)
    question_mask = padding_mask(batch.attention_mask)
    assert batch.decoder_input_ids is not None
    length = batch.decoder_input_ids.shape[1]
    causal_mask = additive_mask(torch.ones(length, length, device=question.device).tril())
    hidden: Tensor = model.text_decoder.bert.embeddings(input_ids=batch.decoder_input_ids)
    for layer in model.text_decoder.bert.encoder.layer:
        hidden = bert_layer(layer, hidden, causal_mask, question, question_mask)
    logits: Tensor = model.text_decoder.cls(hidden)
    return logits


def encode_questions(model: Any, image_features: Tensor, batch: TrainingBatch) -> Tensor:
    """The text encoder's last hidden state (questions, question_tokens, hidden).

    Every image gets as many slots as the most asked one; a slot without a question is computed and left out.
    """
    images, tokens = len(image_features), batch.input_ids.shape[1]
    place, slots = question_slots(batch.image_index, images)
    input_ids, attention_mask = (batch.input_ids.new_zeros(images * slots, tokens) for _ in range(2))
    input_ids[place], attention_mask[place] = batch.input_ids, batch.attention_mask
    mask = padding_mask(attention_mask)
    hidden: Tensor = model.text_encoder.embeddings(input_ids=input_ids)
    for layer in model.text_encoder.encoder.layer:
        hidden = bert_attention(layer.attention, hidden, hidden, mask)
        of_image = hidden.view(images, slots * tokens, -1)
        of_image = bert_attention(layer.crossattention, of_image, image_features, None)
        hidden = layer.feed_forward_chunk(of_image.view(images * slots, tokens, -1))
    return hidden[place]


def question_slots(image_index: Tensor, images: int) -> tuple[Tensor, int]:
    """Each question's row among ``images * slots`` rows, image by image and in order, and ``slots``."""
    counts = torch.bincount(image_index, minlength=images)
    order = torch.argsort(image_index, stable=True)
    first = counts.cumsum(0) - counts
    position = torch.empty_like(image_index)
    position[order] = torch.arange(len(image_index), device=image_index.device) - first[image_index[order]]
    slots = int(counts.max())
    return image_index * slots + position, slots
