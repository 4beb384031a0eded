"""BLIP for visual question answering: Li et al. 2022, arXiv:2201.12086, as transformers' BlipForQuestionAnswering.

The vision tower's self-attention computes query, key and value in one fused Linear (``qkv``), so it is no
:class:`AttentionSite`; the text encoder's and the decoder's self- and cross-attention are.
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

from vlm_edge.checkpoints.config import read_config
from vlm_edge.checkpoints.generation_settings import read_settings
from vlm_edge.checkpoints.processors import encode_texts, read_image_processing, read_text_processing
from vlm_edge.data.dataset import Sample
from vlm_edge.families.base import AttentionSite, ComponentExport, Family, TrainingBatch
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.blip_components import Decoder, text_encoder_export, vision_encoder_export
from vlm_edge.families.parts.blip_training import answer_logits
from vlm_edge.families.parts.cached_decoder import decoder_export
from vlm_edge.processing.manifest import Generation, ImageProcessing, PipelineKind, TextProcessing

IGNORE_INDEX = -100


class BlipVqa(Family):
    """BlipForQuestionAnswering. ``generate`` there lets the decoder look at a question's padding when questions of
    different lengths share a batch; here padding is masked, which is the same for every question asked alone."""

    name = "blip-vqa"
    architectures: tuple[str, ...] = ("BlipForQuestionAnswering",)
    pipeline: PipelineKind = "vqa"
    vision_tower_path = "vision_model"
    inner_generate = True

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        model: nn.Module = BlipForQuestionAnswering(BlipConfig.from_dict(dict(config)))
        return model

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        tower = BlipConfig.from_dict(read_config(checkpoint)).vision_config
        return read_image_processing(checkpoint, BlipImageProcessorPil, tower)

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        return read_text_processing(checkpoint, self._text_config(checkpoint)["max_position_embeddings"])

    def generation(self, checkpoint: Path) -> Generation | None:
        """Start, stop and padding tokens as ``generate`` takes them from the text config: bos, sep and pad."""
        text = self._text_config(checkpoint)
        return read_settings(checkpoint, BlipConfig.from_dict(read_config(checkpoint)), inner=True).generation(
            start=text["bos_token_id"],
            ends=[text["sep_token_id"]],
            pad=text["pad_token_id"],
            most=text["max_position_embeddings"],
        )

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        vision = vision_encoder_export(model, image)
        with torch.no_grad():
            features = vision.module(*vision.example.values())[0]
        blip: Any = model
        vocabulary = blip.text_decoder.cls.predictions.decoder.out_features
        return {
            "vision_encoder": vision,
            "text_encoder": text_encoder_export(model, image_tokens=features.shape[1], image_hidden=features.shape[2]),
            "decoder": decoder_export(Decoder(model).eval(), vocabulary, "question_tokens"),
        }

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        blip: Any = model
        return blip.generate(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask, **settings)

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """Self- and cross-attention of the text encoder and the decoder; the fused vision tower has none."""
        return named_sites(model, lambda path: "decoder" if path.startswith("text_decoder.") else "text_encoder")

    def encode_image(self, model: nn.Module, pixel_values: Tensor) -> Tensor:
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

    def task_logits(self, model: nn.Module, image_features: Tensor, batch: TrainingBatch) -> Tensor:
        """Teacher-forced answer logits (questions, answer_tokens, vocab), as the exported graphs compute them."""
        return answer_logits(model, image_features, batch)

    @staticmethod
    def _text_config(checkpoint: Path) -> dict[str, Any]:
        """``text_config`` with its defaults filled in."""
        config = BlipConfig.from_dict(read_config(checkpoint))
        values: dict[str, Any] = config.text_config.to_dict()
        return values
