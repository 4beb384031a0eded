"""Florence-2: Xiao et al. 2023, arXiv:2311.06242, as transformers' Florence2ForConditionalGeneration.

A DaViT (Ding et al. 2022, arXiv:2204.03645) and a projector make an image's tokens; BART's encoder reads them before
the prompt's, and its decoder writes the answer. A task is a prompt: ``<CAPTION>`` stands for "What does the image
describe?", as Florence2Processor words it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Florence2Config, Florence2ForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.checkpoints.config import read_config
from vlm_edge.checkpoints.generation_settings import read_generation
from vlm_edge.checkpoints.processors import read_image_processing, read_text_processing
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention_masks import additive_mask, visible_tokens
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.cached_decoder import (
    BATCH,
    MEMORY,
    CachedLayer,
    MaskedDecoder,
    cross_key_values,
    cross_shapes,
    decoder_export,
)
from vlm_edge.families.parts.text_decoders import BartEmbeddings, BartLayer, bart_encoded
from vlm_edge.processing.manifest import Generation, ImageProcessing, PipelineKind, TextProcessing

MASK, MEMORY_TOKENS = "encoder_attention_mask", "memory_tokens"
TASKS = {
    "<OCR>": "What is the text in the image?",
    "<OCR_WITH_REGION>": "What is the text in the image, with regions?",
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
    "<OD>": "Locate the objects with category name in the image.",
    "<DENSE_REGION_CAPTION>": "Locate the objects in the image, with their descriptions.",
    "<REGION_PROPOSAL>": "Locate the region proposals in the image.",
    "<CAPTION_TO_PHRASE_GROUNDING>": "Locate the phrases in the caption: {input}",
    "<REFERRING_EXPRESSION_SEGMENTATION>": "Locate {input} in the image with mask",
    "<REGION_TO_SEGMENTATION>": "What is the polygon mask of region {input}",
    "<OPEN_VOCABULARY_DETECTION>": "Locate {input} in the image.",
    "<REGION_TO_CATEGORY>": "What is the region {input}?",
    "<REGION_TO_DESCRIPTION>": "What does the region {input} describe?",
    "<REGION_TO_OCR>": "What text is in the region {input}?",
}
"""Florence2Processor's wording (transformers 5.23, processing_florence2.py)."""


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_features (images, 1 + cells, width): the mean and every cell."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.projector(self.tower(pixel_values).last_hidden_state),)


class TextEncoder(nn.Module):
    """input_ids, attention_mask (batch, question_tokens), image_features (batch, image_tokens, width) ->
    encoder_attention_mask (batch, image_tokens + question_tokens), and the decoder's cross-attention keys and values
    of as many tokens."""

    def __init__(self, model: Any, layers: list[CachedLayer]) -> None:
        super().__init__()
        self.embeddings = model.get_input_embeddings()
        self.encoder = model.model.language_model.encoder
        self.layers = nn.ModuleList(layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> tuple[Tensor, ...]:
        seen = torch.cat([attention_mask.new_ones(image_features.shape[:2]), attention_mask], dim=1)
        embeds = torch.cat([image_features, self.embeddings(input_ids)], dim=1)
        memory = bart_encoded(self.encoder, embeds, additive_mask(visible_tokens(seen)))
        return (seen, *cross_key_values(self.layers, memory))  # type: ignore[arg-type]


class Florence2(Family):
    """Florence2ForConditionalGeneration. Answers keep location tokens such as ``<loc_52>`` for the caller to read."""

    name = "florence2"
    architectures: tuple[str, ...] = ("Florence2ForConditionalGeneration",)
    pipeline: PipelineKind = "vqa"
    vision_tower_path = "model.vision_tower"

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        settings = Florence2Config.from_dict(dict(config), attn_implementation="eager")
        if settings.text_config.model_type != "bart":
            raise VlmEdgeError(
                f"config.json: text_config: {settings.text_config.model_type!r} can't be exported; known: bart",
                "add how its layers compute to vlm_edge/families/parts/text_decoders.py",
            )
        model: nn.Module = Florence2ForConditionalGeneration(settings)
        return model

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        return read_image_processing(checkpoint, CLIPImageProcessorPil)

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        """Prompts end where the encoder's positions do, the image's tokens taken off."""
        config = _config(checkpoint)
        positions = config.text_config.max_position_embeddings - _image_tokens(
            config, self.image_processing(checkpoint)
        )
        spec = read_text_processing(checkpoint, positions)
        generation = self.generation(checkpoint)
        dropped = {generation.start_token_id, *generation.eos_token_ids, generation.pad_token_id}
        dropped |= {generation.first_token_id} if generation.first_token_id is not None else set()
        return spec.model_copy(update={"tasks": TASKS, "dropped_token_ids": tuple(sorted(dropped))})

    def generation(self, checkpoint: Path) -> Generation:
        config = _config(checkpoint)
        return read_generation(checkpoint, config, config.text_config.max_position_embeddings)

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        whole: Any = model
        bart = whole.model.language_model
        layers: list[CachedLayer] = [BartLayer(layer, norm_first=False) for layer in bart.decoder.layers]
        decoder = MaskedDecoder(BartEmbeddings(bart.decoder), layers, whole.lm_head).eval()
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randn((BATCH, 3, image.height, image.width), generator=generator)
        vocabulary = whole.config.text_config.vocab_size
        input_ids = torch.randint(0, vocabulary, (BATCH, MEMORY), generator=generator)
        attention_mask = torch.ones_like(input_ids)
        attention_mask[-1, -2:] = 0
        vision = VisionEncoder(whole).eval()
        with torch.no_grad():
            (features,) = vision(pixels)
        tokens = {0: "batch", 1: "question_tokens"}
        memory = f"{features.shape[1]} + question_tokens"
        return {
            "vision_encoder": ComponentExport(
                module=vision,
                example={"pixel_values": pixels},
                dynamic={"pixel_values": {0: "images"}},
                output_shapes={"image_features": ("images", *features.shape[1:])},
            ),
            "text_encoder": ComponentExport(
                module=TextEncoder(whole, layers).eval(),
                example={"input_ids": input_ids, "attention_mask": attention_mask, "image_features": features},
                dynamic={"input_ids": tokens, "attention_mask": tokens, "image_features": {0: "batch"}},
                output_shapes={MASK: ("batch", memory)} | cross_shapes(layers, "batch", memory),
            ),
            "decoder": decoder_export(decoder, vocabulary, MEMORY_TOKENS, MASK),
        }

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """``generate`` with the image's placeholders before the prompt, as Florence2Processor puts them."""
        whole: Any = model
        (features,) = VisionEncoder(whole)(pixel_values)
        places = input_ids.new_full(features.shape[:2], whole.config.image_token_id)
        return whole.generate(
            input_ids=torch.cat([places, input_ids], dim=1),
            attention_mask=torch.cat([torch.ones_like(places), attention_mask], dim=1),
            pixel_values=pixel_values,
            **settings,
        )

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """BART's self- and cross-attention; DaViT's are fused."""
        encoder = "model.language_model.encoder."
        return named_sites(model, lambda path: "text_encoder" if path.startswith(encoder) else "decoder")


def _config(checkpoint: Path) -> Florence2Config:
    return Florence2Config.from_dict(read_config(checkpoint))


def _image_tokens(config: Florence2Config, image: ImageProcessing) -> int:
    """The mean's token and one for every cell of DaViT's last feature map."""
    rows, columns = image.height, image.width
    vision = config.vision_config
    for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
        rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (rows, columns))
    return 1 + rows * columns
