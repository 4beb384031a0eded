"""Vision models without text (DINOv2, MobileViT): one component, image embeddings, perhaps a class head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.component import image_component
from vlm_edge.processing.manifest import ImageProcessing, PipelineKind

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
    model_classes: Mapping[str, Any]
    """By architecture: the bare model, and the one with a class head."""

    def build(self, config: Mapping[str, Any]) -> Any:
        settings = self.config_class.from_dict(dict(config), attn_implementation="eager")
        return self.model_classes[config["architectures"][0]](settings)

    def labels(self, model: Any) -> tuple[str, ...] | None:
        if not type(model).__name__.endswith(HEAD_SUFFIX):
            return None
        return tuple(model.config.id2label[index] for index in range(model.config.num_labels))

    def base(self, model: Any, image: ImageProcessing) -> nn.Module:
        """The model below the head, ready for images of ``image``'s size."""
        base: nn.Module = getattr(model, model.base_model_prefix, model)
        return base

    def head_input(self, features: Tensor, embeds: Tensor) -> Tensor:
        """The input of the class head."""
        return embeds

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        names = ("image_embeds", "image_features", "logits")[: 2 if self.labels(model) is None else 3]
        return {"vision_encoder": image_component(Tower(self, model, self.base(model, image)), image, *names)}

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        outputs = model(pixel_values=inputs["pixel_values"])
        return outputs.logits if self.labels(model) else outputs.pooler_output

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        return named_sites(model, {"": "vision_encoder"})
