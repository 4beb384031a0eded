"""IDEFICS: Laurençon et al. 2023, arXiv:2306.16527, an open Flamingo (Alayrac et al. 2022, arXiv:2204.14198), as
transformers' IdeficsForVisionText2Text.

A CLIP tower, a perceiver resampler that makes a few latents of any image, and gated cross-attention before every few
layers of a Llama. A token sees the last image before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from vlm_edge.checkpoints.pretrained import load_tokenizer
from vlm_edge.checkpoints.processors import checked_pictures, load_image_processor, pixel_settings
from vlm_edge.checkpoints.prompt import FIRST, MAX_IMAGES, QUESTION
from vlm_edge.families.base import AttentionSite, ComponentExport
from vlm_edge.families.parts.gated_cross import (
    CrossKeyValues,
    GatedCrossLayer,
    GatedDecoder,
    cross_component,
    cross_names,
    gated_cross_sites,
    gated_decoder_export,
)
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.families.parts.tower_states import vision_encoder_export
from vlm_edge.processing.manifest import ImageProcessing
from vlm_edge.processing.picture import Picture

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


class Tower(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, tokens, hidden)."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        hidden = self.tower.pre_layrnorm(self.tower.embeddings(pixel_values))
        for layer in self.tower.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        return (hidden,)


class Idefics(LanguageFamily):
    """IdeficsForVisionText2Text."""

    name = "idefics"
    architectures: tuple[str, ...] = ("IdeficsForVisionText2Text",)
    vision_tower_path = "model.vision_model"
    language_model_path = "model.layers"
    image_reach: Literal["group", "last"] | None = "last"
    config_class: Any = IdeficsConfig
    model_class: Any = IdeficsForVisionText2Text
    image_processor_class: Any = IdeficsImageProcessorPil
    fallback_special_tokens = False
    fallback_strip = True

    def token_id(self, checkpoint: Path) -> int:
        """The tokenizer's word on it: config.json has none."""
        tokenizer = load_tokenizer(checkpoint)
        return int(tokenizer.convert_tokens_to_ids(self.image_token))

    def fallback(self, checkpoint: Path) -> tuple[str, ...]:
        """What the processor makes of "User:", the images and the question, as the published models were trained."""
        tokenizer = load_tokenizer(checkpoint)
        end = END if END in tokenizer.get_vocab() else ""
        images = ["", *(AROUND + (self.image_token + AROUND) * count for count in range(1, MAX_IMAGES + 1))]
        return tuple(f"{FIRST}User:{each}{QUESTION}{end}\nAssistant:" for each in images)

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        processor = load_image_processor(checkpoint, self.image_processor_class, alike=(self.image_processor_class,))
        spec = ImageProcessing(
            height=processor.size["height"], width=processor.size["width"], **pixel_settings(processor)
        )
        return checked_pictures(checkpoint, processor, spec, self.processed)

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        return {"pixel_values": np.asarray(processor(image, return_tensors="np"))}

    def image_tokens(self, config: Any) -> int:
        """The one that stands for the image in the text; its latents are in the cross-attention."""
        return 1

    def vision_encoder(self, model: Any) -> nn.Module:
        return Tower(model.model.vision_model)

    def connector(self, model: Any) -> nn.Module:
        resampler = model.model.perceiver_resampler if model.config.use_resampler else nn.Identity()
        attentions = [layer.cross_attn for layer in model.model.gated_cross_attn_layers]
        norms = [getattr(attention, "k_layer_norm", nn.Identity()) for attention in attentions]
        return CrossKeyValues(resampler, attentions, norms)

    def decoder(self, model: Any) -> GatedDecoder:
        """Cross-attention before every ``cross_layer_interval``-th layer, and numbered by itself."""
        inner = model.model
        layers: list[tuple[int, nn.Module]] = []
        for number, layer in enumerate(inner.layers):
            if number % inner.cross_layer_interval == 0:
                cross = inner.gated_cross_attn_layers[number // inner.cross_layer_interval]
                norm = getattr(cross.cross_attn, "q_layer_norm", nn.Identity())
                gates = (cross.alpha_cross_attn, cross.alpha_dense)
                gated = GatedCrossLayer(cross, gates, norm, gated_rows=False)
                layers.append((number // inner.cross_layer_interval, gated))
            layers.append((number, layer))
        rotary = inner.layers[0].self_attn.rotary_emb
        return GatedDecoder(TwoTables(inner.embed_tokens), layers, inner.norm, rotary, model.lm_head)

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        vlm: Any = model
        vision = vision_encoder_export(self.vision_encoder(model), image)
        with torch.no_grad():
            (features,) = vision.module(*vision.example.values())
        decoder = self.decoder(model)
        names = cross_names(decoder.cross_shapes())
        vocabulary = vlm.lm_head.out_features + vlm.lm_head.out_additional_features
        return {
            "vision_encoder": vision,
            "connector": cross_component(self.connector(model), {"image_features": features}, names),
            "decoder": gated_decoder_export(decoder, vocabulary),
        }

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """Gated cross-attention beside what every language family has."""
        return [*super().attention_sites(model), *gated_cross_sites(model, "model.gated_cross_attn_layers")]

    def model_inputs(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """The pictures as one request's."""
        pixels = np.concatenate([picture.inputs["pixel_values"] for picture in pictures])
        return {"pixel_values": torch.from_numpy(pixels)[None]}

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """``generate``, with the processor's mask: the last image before each token; a black one, unseen, for none."""
        seen = (input_ids == settings["image_token_id"]).cumsum(dim=1)
        if not len(pixel_values):
            tower: Any = model.get_submodule(self.vision_tower_path)
            size = tower.embeddings.image_size
            pixel_values = torch.zeros((1, 1, 3, size, size))
        settings["image_attention_mask"] = torch.stack(
            [seen == image + 1 for image in range(pixel_values.shape[1])], dim=-1
        ).to(torch.int64)
        return super().reference(model, pixel_values, input_ids, attention_mask, **settings)
