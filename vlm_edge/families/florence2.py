"""Florence-2: Xiao et al. 2023, arXiv:2311.06242, as transformers' Florence2ForConditionalGeneration.

A DaViT (Ding et al. 2022, arXiv:2204.03645) and a projector make an image's tokens; BART's encoder reads them before
the prompt's, and its decoder writes the answer. A task is a prompt: ``<CAPTION>`` stands for "What does the image
describe?", as Florence2Processor words it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Florence2Config, Florence2ForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.checkpoints.generation_settings import read_generation
from vlm_edge.checkpoints.processors import read_text_processing
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionSite
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.cached_decoder import MaskedDecoder
from vlm_edge.families.parts.image_prefix import ImagePrefixFamily, TextEncoder, with_places
from vlm_edge.families.parts.text_decoders import BartEmbeddings, BartEncoder, BartLayer
from vlm_edge.processing.manifest import Generation, ImageProcessing, TextProcessing

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


class Florence2(ImagePrefixFamily):
    """Florence2ForConditionalGeneration. Answers keep location tokens such as ``<loc_52>`` for the caller to read."""

    name = "florence2"
    architectures: tuple[str, ...] = ("Florence2ForConditionalGeneration",)
    config_class: Any = Florence2Config
    model_class: Any = Florence2ForConditionalGeneration
    image_processor_class: Any = CLIPImageProcessorPil
    vision_tower_path = "model.vision_tower"

    def build(self, config: Mapping[str, Any]) -> Any:
        kind = Florence2Config.from_dict(dict(config)).text_config.model_type
        if kind != "bart":
            raise VlmEdgeError(
                f"config.json: text_config: {kind!r} can't be exported; known: bart",
                "add how its layers compute to vlm_edge/families/parts/text_decoders.py",
            )
        return super().build(config)

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        """Prompts end where the encoder's positions do, the image's tokens taken off."""
        config = self.config(checkpoint)
        image_tokens = _image_tokens(config, self.image_processing(checkpoint))
        spec = read_text_processing(checkpoint, config.text_config.max_position_embeddings - image_tokens)
        generation = self.generation(checkpoint)
        dropped = {generation.start_token_id, *generation.eos_token_ids, generation.pad_token_id}
        dropped |= {generation.first_token_id} if generation.first_token_id is not None else set()
        return spec.model_copy(update={"tasks": TASKS, "dropped_token_ids": tuple(sorted(dropped))})

    def generation(self, checkpoint: Path) -> Generation:
        config = self.config(checkpoint)
        return read_generation(checkpoint, config, config.text_config.max_position_embeddings)

    def vision_encoder(self, model: Any) -> nn.Module:
        return VisionEncoder(model)

    def text_encoder(self, model: Any, layers: Iterable[nn.Module]) -> TextEncoder:
        return TextEncoder(model.get_input_embeddings(), BartEncoder(model.model.language_model.encoder), layers)

    def decoder(self, model: Any) -> MaskedDecoder:
        decoder = model.model.language_model.decoder
        layers = [BartLayer(layer, norm_first=False) for layer in decoder.layers]
        return MaskedDecoder(BartEmbeddings(decoder), layers, model.lm_head)

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        tokens = VisionEncoder(model)(inputs["pixel_values"])[0].shape[1]
        return model.generate(**with_places(inputs, tokens, model.config.image_token_id), **settings)

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """BART's self- and cross-attention; DaViT's are fused."""
        return named_sites(model, {"model.language_model.encoder": "text_encoder", "": "decoder"})


def _image_tokens(config: Florence2Config, image: ImageProcessing) -> int:
    """The mean's token and one for every cell of DaViT's last feature map."""
    rows, columns = image.height, image.width
    vision = config.vision_config
    for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
        rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (rows, columns))
    return 1 + rows * columns
