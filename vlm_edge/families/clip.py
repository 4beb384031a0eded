"""CLIP, the dual encoder: Radford et al. 2021, arXiv:2103.00020, as transformers' CLIPModel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.checkpoints import open_clip
from vlm_edge.checkpoints.config import read_config, read_json_object
from vlm_edge.checkpoints.processors import (
    encode_texts,
    image_processing_of,
    read_image_processing,
    read_text_processing,
)
from vlm_edge.data.dataset import Sample
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionSite, ComponentExport, Family, TrainingBatch
from vlm_edge.families.parts.attention_masks import additive_mask, visible_past, visible_tokens
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind, TextProcessing

BATCH, TOKENS = 2, 7
"""Sizes of the example inputs."""
LEGACY_EOS = 2
"""Configs before transformers 4.31 say eos_token_id = 2, and mean the largest id in the text."""


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_embeds (images, dim), L2-normalised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.projection = model.visual_projection

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        pooled = self.tower(pixel_values=pixel_values).pooler_output
        return (normalize(self.projection(pooled), dim=-1),)


class TextEncoder(nn.Module):
    """input_ids, attention_mask (texts, tokens) -> text_embeds (texts, dim), L2-normalised: the state of the first
    end token, as CLIPTextModel pools it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.text_model
        self.projection = model.text_projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        texts, tokens = input_ids.shape
        mask = additive_mask(visible_past(tokens, 0, input_ids.device) * visible_tokens(attention_mask))
        hidden = self.tower.embeddings(input_ids=input_ids)
        hidden = self.tower.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        hidden = self.tower.final_layer_norm(hidden)
        ends = input_ids if self.tower.eos_token_id == LEGACY_EOS else (input_ids == self.tower.eos_token_id)
        pooled = hidden[torch.arange(texts, device=hidden.device), ends.to(torch.int32).argmax(dim=-1)]
        return (normalize(self.projection(pooled), dim=-1),)


class Clip(Family):
    """CLIPModel, with attention spelled out (``eager``): the exporter then writes the pattern that engines fuse.

    Relatives of CLIP differ in the classes below, and inherit the rest.
    """

    name = "clip"
    architectures: tuple[str, ...] = ("CLIPModel",)
    pipeline: PipelineKind = "dual_encoder"
    vision_tower_path = "vision_model"
    config_class: Any = CLIPConfig
    model_class: Any = CLIPModel
    image_processor_class: Any = CLIPImageProcessorPil
    vision_encoder_class: type[nn.Module] = VisionEncoder
    text_encoder_class: type[nn.Module] = TextEncoder

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        model: nn.Module = self.model_class(self.config_class.from_dict(dict(config), attn_implementation="eager"))
        return model

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return open_clip.rename(state) if open_clip.is_open_clip(state) else state

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        """The checkpoint's; of an open_clip folder without a processor's settings, what open_clip does."""
        settings = checkpoint / open_clip.CONFIG_NAME
        if settings.is_file() and not (checkpoint / "preprocessor_config.json").is_file():
            processor = open_clip.image_processor(read_json_object(settings), read_config(checkpoint))
            spec = image_processing_of(self.image_processor_class(**processor), checkpoint)
            return spec.model_copy(update={"transparency": "refuse"})  # open_clip resizes before it drops alpha
        tower = self.config_class.from_dict(read_config(checkpoint)).vision_config
        return read_image_processing(checkpoint, self.image_processor_class, tower)

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        config = self.config_class.from_dict(read_config(checkpoint))
        return read_text_processing(checkpoint, config.text_config.max_position_embeddings)

    def logit_scale(self, model: nn.Module) -> float | None:
        clip: Any = model
        return float(clip.logit_scale.detach().exp())

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        text_encoder = self.text_component(model)
        (dim,) = (shape[1] for shape in text_encoder.output_shapes.values())
        pixels = torch.randn((BATCH, 3, image.height, image.width), generator=torch.Generator().manual_seed(0))
        return {
            "vision_encoder": ComponentExport(
                module=self.vision_encoder_class(model).eval(),
                example={"pixel_values": pixels},
                dynamic={"pixel_values": {0: "images"}},
                output_shapes={"image_embeds": ("images", dim)},
            ),
            "text_encoder": text_encoder,
        }

    def text_component(self, model: nn.Module) -> ComponentExport:
        """text_encoder's graph; in the example one text is padded."""
        clip: Any = model
        vocabulary = clip.config.text_config.vocab_size
        input_ids = torch.randint(0, vocabulary, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))
        attention_mask = torch.ones_like(input_ids)
        attention_mask[-1, -2:] = 0
        tokens = {0: "texts", 1: "tokens"}
        module = self.text_encoder_class(clip).eval()
        with torch.no_grad():
            (embeds,) = module(input_ids, attention_mask)
        return ComponentExport(
            module=module,
            example={"input_ids": input_ids, "attention_mask": attention_mask},
            dynamic={"input_ids": tokens, "attention_mask": tokens},
            output_shapes={"text_embeds": ("texts", embeds.shape[1])},
        )

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        outputs = model(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        return outputs.logits_per_image

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """Self-attention of both towers (of the text tower alone once the vision tower is replaced)."""
        return named_sites(model, lambda path: "text_encoder" if path.startswith("text_model.") else "vision_encoder")

    def encode_image(self, model: nn.Module, pixel_values: Tensor) -> Tensor:
        """image_embeds (images, dim), L2-normalised."""
        (image_embeds,) = self.vision_encoder_class(model)(pixel_values)
        embeds: Tensor = image_embeds
        return embeds

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
        """One prompt a label, and for each sample the row of its label.

        Raises:
            VlmEdgeError: a sample's class is none of ``labels``.
        """
        classes = list(labels) or sorted({sample.answers[0] for sample in samples})
        template = prompts[0] if prompts else "{}"
        unknown = sorted({sample.answers[0] for sample in samples} - set(classes))
        if unknown:
            raise VlmEdgeError(
                f"classes that are no label of the data set: {', '.join(unknown)}; labels: {', '.join(classes)}",
                "list every class under labels in the data set's manifest",
            )
        texts = [template.replace("{}", name) for name in classes]
        input_ids, attention_mask = encode_texts(checkpoint, self.text_processing(checkpoint), texts)
        targets = torch.tensor([classes.index(sample.answers[0]) for sample in samples])
        return TrainingBatch(pixel_values, image_index, input_ids, attention_mask, labels=targets)

    def task_logits(self, model: nn.Module, image_features: Tensor, batch: TrainingBatch) -> Tensor:
        """exp(logit_scale) times the cosine similarities (questions, labels)."""
        clip: Any = model
        (text_embeds,) = self.text_encoder_class(clip)(batch.input_ids, batch.attention_mask)
        logits: Tensor = image_features[batch.image_index] @ text_embeds.T * clip.logit_scale.exp()
        return logits
