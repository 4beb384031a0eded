"""ViLT, answers chosen from a list: Kim et al. 2021, arXiv:2102.03334, as transformers' ViltForQuestionAnswering.

One transformer reads the question's tokens and the image's patches together, and a head on its first token judges every
answer. An image is no more than a linear projection before that, so all of it is one graph, ``fusion``.

transformers draws the order of an image's patches at random; with ``max_image_length`` also which of them are seen.
Their order changes nothing, since each has its position by then: here they stay in their own. Which are seen does, so
such a limit is refused where it could leave patches out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import ViltConfig, ViltForQuestionAnswering
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from vlm_edge.checkpoints.processors import read_text_processing
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionRole, AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention import attention, padding_mask, split_heads
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.component import BATCH, QUESTION, component, text_example
from vlm_edge.families.parts.patch_positions import corner_weights, resized_positions
from vlm_edge.processing.manifest import ImageProcessing, PatchRows, PipelineKind, TextProcessing
from vlm_edge.processing.patch_rows import cut_patches, most_patches

PATCHES = 6
"""Patches of an image in the example inputs."""
LONGEST_OVER_SHORTEST = 1333 / 800
"""By what ViltImageProcessor bounds the longer side, in shorter sides."""


class Fusion(nn.Module):
    """input_ids, attention_mask (batch, question_tokens), pixel_values (batch, patches, values), pixel_attention_mask
    (batch, patches), spatial_shapes (batch, 2) -> logits (batch, answers)."""

    patch_weight: Tensor
    first: Tensor
    positions: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        embeddings = model.vilt.embeddings
        self.text = embeddings.text_embeddings
        self.kinds = embeddings.token_type_embeddings
        projection = embeddings.patch_embeddings.projection
        self.patch_bias = projection.bias
        weight = projection.weight.detach().permute(0, 2, 3, 1).flatten(1)  # the values of a patch: (y, x, channel)
        positions = embeddings.position_embeddings.detach()[0]
        self.register_buffer("patch_weight", weight, persistent=False)
        self.register_buffer("first", embeddings.cls_token.detach() + positions[:1], persistent=False)
        self.register_buffer("positions", positions[1:].clone(), persistent=False)
        self.layers = model.vilt.encoder.layer
        self.norm = model.vilt.layernorm
        self.pooler = model.vilt.pooler
        self.head = model.classifier

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor,
        spatial_shapes: Tensor,
    ) -> tuple[Tensor]:
        batch, patches, _ = pixel_values.shape
        places = resized_positions(self.positions, spatial_shapes, patches, corner_weights)
        seen = linear(pixel_values, self.patch_weight, self.patch_bias)
        image = torch.cat([self.first.expand(batch, -1, -1), seen + places], dim=1)
        text = self.text(input_ids=input_ids)
        hidden = torch.cat([text + self.kinds.weight[0], image + self.kinds.weight[1]], dim=1)
        visible = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1]), pixel_attention_mask], dim=1)
        mask = padding_mask(visible)
        for layer in self.layers:
            hidden = _encoded(layer, hidden, mask)
        return (self.head(self.pooler(self.norm(hidden))),)


def _encoded(layer: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """One layer, norms before each half."""
    own = layer.attention.attention
    states = layer.layernorm_before(hidden)
    query, key, value = (
        split_heads(project(states), own.attention_head_size) for project in (own.query, own.key, own.value)
    )
    context = attention(query, key, value, mask, own.attention_head_size**-0.5)
    hidden = hidden + layer.attention.output(context, hidden)
    result: Tensor = layer.output(layer.intermediate(layer.layernorm_after(hidden)), hidden)
    return result


class Vilt(Family):
    """ViltForQuestionAnswering. It has no vision tower that a student could replace, and its self-attention is
    where text and image meet."""

    name = "vilt"
    architectures: tuple[str, ...] = ("ViltForQuestionAnswering",)
    pipeline: PipelineKind = "answer_head"
    config_class: Any = ViltConfig
    model_class: Any = ViltForQuestionAnswering
    image_processor_class: Any = ViltImageProcessorPil
    vision_tower_path = ""

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        """The processor's size, of which patches are cut.

        Raises:
            VlmEdgeError: patches don't fit the sizes that it gives, or the model would see some of them only.
        """
        config, processor = self.config(checkpoint), self.image_processor(checkpoint)
        shortest, unit = processor.size.get("shortest_edge"), processor.size_divisor
        if not processor.do_resize or not shortest or unit % config.patch_size:
            raise VlmEdgeError(
                f"{checkpoint}: the image processor must resize shortest_edge to whole patches of {config.patch_size} "
                f"pixels; got do_resize={processor.do_resize}, size={dict(processor.size)}, size_divisor={unit}",
                "set size and size_divisor in preprocessor_config.json",
            )
        rows = PatchRows(patch=config.patch_size)
        spec = self.processing_of(
            checkpoint,
            processor,
            height=shortest,
            width=shortest,
            shortest_edge=shortest,
            longest_edge=int(LONGEST_OVER_SHORTEST * shortest),
            multiple_of=unit,
            tiles=rows,
        )
        if 0 <= config.max_image_length < most_patches(spec, rows):
            raise VlmEdgeError(
                f"{checkpoint}: max_image_length is {config.max_image_length}, and images have up to "
                f"{most_patches(spec, rows)} patches: transformers picks those that are seen at random",
                "set max_image_length to -1 in config.json: all patches are then seen",
            )
        return spec

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        assert isinstance(spec.tiles, PatchRows)
        pixels = processor(images=image, return_tensors="np")["pixel_values"]
        return {"pixel_values": cut_patches(pixels[0], spec.tiles.patch)[None]}

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        return read_text_processing(checkpoint, self.config(checkpoint).max_position_embeddings)

    def labels(self, model: Any) -> tuple[str, ...] | None:
        """The answers, in the order of the logits."""
        return tuple(model.config.id2label[index] for index in range(model.config.num_labels))

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        text, values = text_example(model.config.vocab_size), 3 * model.config.patch_size**2
        seen = torch.ones((BATCH, PATCHES), dtype=torch.int64)
        seen[-1, -2:] = 0
        pixels = {
            "pixel_values": torch.randn((BATCH, PATCHES, values), generator=torch.Generator().manual_seed(0)),
            "pixel_attention_mask": seen,
        }
        axes = dict.fromkeys(text, QUESTION) | {name: {0: "batch", 1: "patches"} for name in pixels}
        example = text | pixels | {"spatial_shapes": torch.tensor([[2, 3], [1, 4]])}
        inputs = axes | {"spatial_shapes": {0: "batch"}}
        return {"fusion": component(Fusion(model), example, inputs, {"logits": {0: "batch"}})}

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """The logits, from whole images: the patches (images, patches, values) put together and filled up to the
        largest."""
        patch = model.config.patch_size
        images = [
            patches[: rows * columns]
            .view(rows, columns, patch, patch, 3)
            .permute(4, 0, 2, 1, 3)
            .reshape(3, rows * patch, columns * patch)
            for patches, (rows, columns) in zip(inputs["pixel_values"], inputs["spatial_shapes"].tolist(), strict=True)
        ]
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        missing = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
        with torch.random.fork_rng(devices=[]):
            return model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=torch.stack([pad(image, each) for image, each in zip(images, missing, strict=True)]),
                pixel_mask=torch.stack(
                    [pad(torch.ones(image.shape[1:]), each) for image, each in zip(images, missing, strict=True)]
                ),
            ).logits

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """Self-attention over text and image together."""
        return [replace(site, role=AttentionRole.JOINT) for site in named_sites(model, {"": "fusion"})]
