"""IDEFICS: Laurençon et al. 2023, arXiv:2306.16527, an open Flamingo (Alayrac et al. 2022, arXiv:2204.14198), as
transformers' IdeficsForVisionText2Text.

A CLIP tower, a perceiver resampler that makes a few latents of any image, and gated cross-attention before every few
layers of a Llama. A token sees the last image before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from vlm_edge.checkpoints.chat_template import FIRST, MAX_IMAGES, QUESTION, Fallback
from vlm_edge.checkpoints.pretrained import load_tokenizer
from vlm_edge.families.parts.gated_cross import GatedCrossLayer, GatedDecoder, GatedFamily
from vlm_edge.families.parts.tower_states import TowerStates
from vlm_edge.processing.manifest import ImageProcessing

AROUND = "<fake_token_around_image>"
END = "<end_of_utterance>"
"""Behind what a user says, in models that were trained to talk."""


class TwoTables(nn.Module):
    """input_ids (batch, tokens) -> embeddings: of the language model's table, and behind it of a few tokens of its own
    (IdeficsDecoupledEmbedding, without its indexing by mask)."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, input_ids: Tensor) -> Tensor:
        table = self.embedding
        if not table.num_additional_embeddings:
            return nn.functional.embedding(input_ids, table.weight)
        own = input_ids >= table.num_embeddings
        base = nn.functional.embedding(input_ids.masked_fill(own, 0), table.weight)
        more = table.additional_embedding((input_ids - table.num_embeddings).clamp(min=0))
        return torch.where(own[..., None], more, base)


class Idefics(GatedFamily):
    """IdeficsForVisionText2Text."""

    name = "idefics"
    architectures: tuple[str, ...] = ("IdeficsForVisionText2Text",)
    vision_tower_path = "model.vision_model"
    language_model_path = "model"  # cross-attention and the language model's layers lie beside the tower
    image_reach: Literal["group", "last"] | None = "last"
    config_class: Any = IdeficsConfig
    model_class: Any = IdeficsForVisionText2Text
    image_processor_class: Any = IdeficsImageProcessorPil
    one_row_a_request = True

    def token_id(self, checkpoint: Path) -> int:
        """The tokenizer's word on it: config.json has none."""
        tokenizer = load_tokenizer(checkpoint)
        return int(tokenizer.convert_tokens_to_ids(self.image_token))

    def fallback_prompt(self, checkpoint: Path) -> Fallback | None:
        """The processor's "User:", images and question, as the published models were trained."""
        end = END if END in load_tokenizer(checkpoint).get_vocab() else ""
        images = ["", *(AROUND + (self.image_token + AROUND) * count for count in range(1, MAX_IMAGES + 1))]
        layouts = tuple(f"{FIRST}User:{each}{QUESTION}{end}\nAssistant:" for each in images)
        return Fallback(layouts, special_tokens=False, strip=True)

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        processor = self.image_processor(checkpoint)
        return self.processing_of(checkpoint, processor, **{side: processor.size[side] for side in ("height", "width")})

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        return {"pixel_values": np.asarray(processor(image, return_tensors="np"))}

    def vision_encoder(self, model: Any) -> nn.Module:
        return TowerStates(model.model.vision_model, [-1], 0)

    def resampler(self, model: Any) -> nn.Module:
        resampler: nn.Module = model.model.perceiver_resampler if model.config.use_resampler else nn.Identity()
        return resampler

    def decoder(self, model: Any) -> GatedDecoder:
        """Cross-attention before every ``cross_layer_interval``-th layer, and numbered by itself."""
        inner = model.model
        layers: list[tuple[int, nn.Module]] = []
        for number, layer in enumerate(inner.layers):
            if number % inner.cross_layer_interval == 0:
                cross = inner.gated_cross_attn_layers[number // inner.cross_layer_interval]
                gates = (cross.alpha_cross_attn, cross.alpha_dense)
                gated = GatedCrossLayer(cross, gates, "{}_layer_norm", gated_rows=False)
                layers.append((number // inner.cross_layer_interval, gated))
            layers.append((number, layer))
        rotary = inner.layers[0].self_attn.rotary_emb
        return GatedDecoder(TwoTables(inner.embed_tokens), layers, inner.norm, rotary, model.lm_head)

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """``generate``, with the processor's mask: the last image before each token; a black one, unseen, for none."""
        seen = (inputs["input_ids"] == settings["image_token_id"]).cumsum(dim=1)
        size = model.get_submodule(self.vision_tower_path).embeddings.image_size
        pixels = inputs.get("pixel_values", torch.zeros((1, 1, 3, size, size)))
        shown = torch.stack([seen == image + 1 for image in range(pixels.shape[1])], dim=-1).to(torch.int64)
        return super().reference(model, {**inputs, "pixel_values": pixels, "image_attention_mask": shown}, **settings)
