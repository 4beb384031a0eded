"""Llama 3.2 Vision: Grattafiori et al. 2024, arXiv:2407.21783, section 7, as transformers'
MllamaForConditionalGeneration.

An image is up to four tiles. Their features go through one projection, and some of the language model's layers are
gated cross-attention to them. Tokens before the first image attend to all of it, padding too, but their MLP is closed:
so it is in transformers, and so the model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from vlm_edge.checkpoints.processors import checked_pictures, load_image_processor, pixel_settings
from vlm_edge.families.base import AttentionSite, ComponentExport
from vlm_edge.families.parts.attention_masks import MASKED
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
from vlm_edge.processing.manifest import CanvasTiles, ImageProcessing
from vlm_edge.processing.picture import Picture

IMAGES = 2
"""Images in the example inputs."""
ALIGNED = 8
"""The tower fills the patches of a tile up to a multiple of this."""


class CanvasEncoder(nn.Module):
    """pixel_values (images, tiles, 3, side, side), aspect_ratio_ids (images,), aspect_ratio_mask (images, tiles) ->
    image_features (images, tiles, patches, hidden): the last hidden state beside those of a few layers."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor, aspect_ratio_ids: Tensor, aspect_ratio_mask: Tensor) -> tuple[Tensor]:
        tower = self.tower
        images, tiles = pixel_values.shape[:2]
        ids = aspect_ratio_ids[:, None]
        hidden = tower.patch_embedding(pixel_values.flatten(0, 1)).flatten(2).transpose(1, 2)
        width = hidden.shape[2]
        hidden = tower.pre_tile_positional_embedding(hidden.view(images, tiles, -1, width), ids)
        hidden = tower.apply_class_embedding(hidden.flatten(0, 1))
        patches = hidden.shape[1]
        hidden = tower.gated_positional_embedding(hidden.view(images, tiles, patches, width), ids)
        extra = -patches % ALIGNED
        hidden = pad(tower.layernorm_pre(hidden), (0, 0, 0, extra))
        mask = _padding_mask(aspect_ratio_mask, patches if extra else 0, patches + extra)
        hidden = hidden.view(images, -1, width)
        states = []
        for layer in tower.transformer.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        hidden = tower.layernorm_post(hidden).view(images, tiles, patches + extra, width)
        hidden = tower.post_tile_positional_embedding(hidden, ids).view(images, -1, width)
        for layer in tower.global_transformer.layers:
            hidden = layer(hidden, mask)
        picked = torch.stack([states[index] for index in tower.intermediate_layers_indices], dim=-1).flatten(2)
        features = torch.cat([hidden, picked], dim=-1).view(images, tiles, patches + extra, -1)
        return (features[:, :, :patches],)


def _padding_mask(tile_mask: Tensor, patches: int, length: int) -> Tensor:
    """(images, 1, tiles x length, tiles x length), to be added: padding does not attend to padding."""
    images, tiles = tile_mask.shape
    inside = (torch.arange(length, device=tile_mask.device) < patches).to(torch.float32)
    outside = 1 - (tile_mask[:, :, None].to(torch.float32) * inside).view(images, tiles * length)
    return (outside[:, None, :, None] * outside[:, None, None, :]) * MASKED


class Mllama(LanguageFamily):
    """MllamaForConditionalGeneration. In its cross-attention several queries share a key, and are pruned with it."""

    name = "mllama"
    architectures: tuple[str, ...] = ("MllamaForConditionalGeneration",)
    vision_tower_path = "model.vision_model"
    image_token = "<|image|>"
    image_reach: Literal["group", "last"] | None = "group"
    config_class: Any = MllamaConfig
    model_class: Any = MllamaForConditionalGeneration
    image_processor_class: Any = MllamaImageProcessorPil

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        processor = load_image_processor(checkpoint, self.image_processor_class, alike=(self.image_processor_class,))
        spec = ImageProcessing(
            height=processor.size["height"],
            width=processor.size["width"],
            tiles=CanvasTiles(max_tiles=processor.max_image_tiles),
            **pixel_settings(processor),
        )
        return checked_pictures(checkpoint, processor, spec, self.processed)

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        inputs = processor(images=image, return_tensors="np")
        return {name: inputs[name][0] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}

    def image_tokens(self, config: Any) -> int:
        """The one that stands for the image in the text; its tokens are in the cross-attention."""
        return 1

    def vision_encoder(self, model: Any) -> nn.Module:
        return CanvasEncoder(model.model.vision_model)

    def connector(self, model: Any) -> nn.Module:
        attentions = [layer.cross_attn for layer in model.model.language_model.layers if hasattr(layer, "cross_attn")]
        norms = [attention.k_norm for attention in attentions]
        return CrossKeyValues(model.model.multi_modal_projector, attentions, norms)

    def decoder(self, model: Any) -> GatedDecoder:
        language_model = model.model.language_model
        layers = [
            (
                number,
                GatedCrossLayer(
                    layer,
                    (layer.cross_attn_attn_gate, layer.cross_attn_mlp_gate),
                    layer.cross_attn.q_norm,
                    gated_rows=True,
                )
                if hasattr(layer, "cross_attn")
                else layer,
            )
            for number, layer in enumerate(language_model.layers)
        ]
        return GatedDecoder(
            language_model.embed_tokens, layers, language_model.norm, language_model.rotary_emb, model.lm_head
        )

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        vlm: Any = model
        assert isinstance(image.tiles, CanvasTiles)
        tiles, generator = image.tiles.max_tiles, torch.Generator().manual_seed(0)
        example = {
            "pixel_values": torch.randn((IMAGES, tiles, 3, image.height, image.width), generator=generator),
            "aspect_ratio_ids": torch.tensor([1, 2]),
            "aspect_ratio_mask": torch.tensor([[1] * each + [0] * (tiles - each) for each in (1, 2)]),
        }
        vision = cross_component(self.vision_encoder(model), example, ["image_features"])
        features = {"image_features": _example_like(vision)}
        decoder = self.decoder(model)
        return {
            "vision_encoder": vision,
            "connector": cross_component(self.connector(model), features, cross_names(decoder.cross_shapes())),
            "decoder": gated_decoder_export(decoder, vlm.lm_head.out_features),
        }

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """Gated cross-attention beside what every language family has."""
        layers = f"{self.language_model_path}.layers"
        own = [site for site in super().attention_sites(model) if not site.path.endswith(".cross_attn")]
        return [*own, *gated_cross_sites(model, layers)]

    def model_inputs(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """The pictures as one request's."""
        names = pictures[0].inputs
        return {
            name: torch.from_numpy(np.concatenate([picture.inputs[name] for picture in pictures]))[None]
            for name in names
        }

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """``generate``, with the processor's mask of what each token sees."""
        from transformers.models.mllama.processing_mllama import (
            convert_sparse_cross_attention_mask_to_dense,
            get_cross_attention_token_mask,
        )

        if len(pixel_values):
            shown = settings["aspect_ratio_mask"]
            seen = get_cross_attention_token_mask(input_ids[0].tolist(), settings["image_token_id"])
            dense = convert_sparse_cross_attention_mask_to_dense(
                [seen], [shown[0].sum(-1).tolist()], shown.shape[-1], input_ids.shape[1]
            )
            settings["cross_attention_mask"] = torch.from_numpy(dense)
        return super().reference(model, pixel_values, input_ids, attention_mask, **settings)


def _example_like(component: ComponentExport) -> Tensor:
    """What a component gives for its example."""
    with torch.no_grad():
        output: Tensor = component.module(*component.example.values())[0]
    return output.contiguous()
