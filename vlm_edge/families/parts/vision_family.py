"""What vision towers of their own (DINOv2, MobileViT) share: one component, image embeddings, perhaps a class head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edge.checkpoints.processors import read_image_processing
from vlm_edge.families.base import ComponentExport, Family
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind

BATCH = 2
"""Images of the example input."""
HEAD_SUFFIX = "ForImageClassification"


class Tower(nn.Module):
    """pixel_values (images, 3, height, width) -> image_embeds (images, dim), image_features (images, tokens, hidden),
    and logits (images, classes) where the model has a head."""

    def __init__(self, family: VisionTower, model: Any, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.classifier = getattr(model, "classifier", None)
        self._head_input = family.head_input

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs: Any = self.base(pixel_values)
        features, embeds = outputs.last_hidden_state, outputs.pooler_output
        if features.ndim == 4:
            features = features.flatten(2).transpose(1, 2)
        if self.classifier is None:
            return embeds, features
        return embeds, features, self.classifier(self._head_input(features, embeds))


class VisionTower(Family):
    """A vision model without text. Subclasses say which."""

    pipeline: PipelineKind = "embedding"
    vision_tower_path = ""
    config_class: Any
    model_classes: Mapping[str, Any]
    """By architecture: the bare model, and the one with a class head."""
    image_processor_class: Any

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        settings = self.config_class.from_dict(dict(config), attn_implementation="eager")
        model: nn.Module = self.model_classes[config["architectures"][0]](settings)
        return model

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        return read_image_processing(checkpoint, self.image_processor_class)

    def labels(self, model: nn.Module) -> tuple[str, ...] | None:
        tower: Any = model
        if not type(model).__name__.endswith(HEAD_SUFFIX):
            return None
        return tuple(tower.config.id2label[index] for index in range(tower.config.num_labels))

    def base(self, model: Any, image: ImageProcessing) -> nn.Module:
        """The model below the head, ready for images of ``image``'s size."""
        base: nn.Module = getattr(model, model.base_model_prefix, model)
        return base

    def head_input(self, features: Tensor, embeds: Tensor) -> Tensor:
        """What the class head reads."""
        return embeds

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        pixels = torch.randn((BATCH, 3, image.height, image.width), generator=torch.Generator().manual_seed(0))
        module = Tower(self, model, self.base(model, image)).eval()
        with torch.no_grad():
            outputs = module(pixels)
        names = ("image_embeds", "image_features", "logits")[: len(outputs)]
        return {
            "vision_encoder": ComponentExport(
                module=module,
                example={"pixel_values": pixels},
                dynamic={"pixel_values": {0: "images"}},
                output_shapes={name: ("images", *out.shape[1:]) for name, out in zip(names, outputs, strict=True)},
            )
        }

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        outputs = model(pixel_values=pixel_values)
        return outputs.logits if self.labels(model) else outputs.pooler_output
