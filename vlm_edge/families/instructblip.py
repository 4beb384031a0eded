"""InstructBLIP: Dai et al. 2023, arXiv:2305.06500, as transformers' InstructBlipForConditionalGeneration.

BLIP-2 whose Q-Former reads the question too, with a tokenizer of its own, so that the connector is run once for every
question about an image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

from vlm_edge.checkpoints.processors import read_text_processing
from vlm_edge.checkpoints.prompt import FIRST, MAX_IMAGES, QUESTION
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.blip2 import Blip2
from vlm_edge.families.parts.attention_masks import additive_mask, visible_tokens
from vlm_edge.families.parts.tower_states import IMAGES
from vlm_edge.processing.manifest import Prompt

TOKENIZER_FOLDER = "qformer_tokenizer"
QUESTION_TOKENS = 6
"""Tokens of the question in the example inputs."""


class InstructedQFormer(nn.Module):
    """image_features (images, tokens, hidden), qformer_input_ids and qformer_attention_mask (images, question_tokens)
    -> image_embeds (images, queries, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.query_tokens = model.query_tokens
        self.qformer = model.qformer
        self.projection = model.language_projection

    def forward(
        self, image_features: Tensor, qformer_input_ids: Tensor, qformer_attention_mask: Tensor
    ) -> tuple[Tensor]:
        images, queries = image_features.shape[0], self.query_tokens.shape[1]
        hidden = self.qformer.embeddings(qformer_input_ids, query_embeds=self.query_tokens.repeat(images, 1, 1))
        seen = torch.cat([qformer_attention_mask.new_ones(images, queries), qformer_attention_mask], dim=1)
        mask = additive_mask(visible_tokens(seen))
        for layer in self.qformer.encoder.layer:
            hidden = layer(hidden, mask, image_features, query_length=queries)
        return (self.projection(hidden[:, :queries]),)


class InstructBlip(Blip2):
    """InstructBlipForConditionalGeneration with a Vicuna."""

    name = "instructblip"
    architectures: tuple[str, ...] = ("InstructBlipForConditionalGeneration",)
    config_class: Any = InstructBlipConfig
    model_class: Any = InstructBlipForConditionalGeneration
    fallback_prompt: tuple[str, ...] | None = tuple(
        f"{'<image>' * images}{FIRST}{QUESTION}" for images in range(MAX_IMAGES + 1)
    )

    def prompt(self, checkpoint: Path) -> Prompt | None:
        """BLIP-2's, and the Q-Former's tokenizer.

        Raises:
            VlmEdgeError: the folder of that tokenizer is missing.
        """
        prompt = super().prompt(checkpoint)
        assert prompt is not None
        folder = checkpoint / TOKENIZER_FOLDER
        if not folder.is_dir():
            raise VlmEdgeError(
                f"{checkpoint}: no {TOKENIZER_FOLDER}, the tokenizer of the Q-Former",
                "copy that folder from the model's page",
            )
        positions = self.config(checkpoint).qformer_config.max_position_embeddings
        instruction = read_text_processing(folder, positions)
        inside = instruction.model_copy(update={"tokenizer": f"{TOKENIZER_FOLDER}/{instruction.tokenizer}"})
        return prompt.model_copy(update={"instruction": inside})

    def connector(self, model: Any) -> nn.Module:
        return InstructedQFormer(model)

    def connector_inputs(self, model: Any) -> dict[str, tuple[Tensor, dict[int, str]]]:
        """The question's tokens, the last row's padded."""
        vocabulary = model.qformer.embeddings.word_embeddings.num_embeddings
        ids = torch.randint(0, vocabulary, (IMAGES, QUESTION_TOKENS), generator=torch.Generator().manual_seed(3))
        mask = torch.ones_like(ids)
        mask[-1, -2:] = 0
        axes = {0: "images", 1: "question_tokens"}
        return {"qformer_input_ids": (ids, axes), "qformer_attention_mask": (mask, axes)}

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """As BLIP-2's; every image is given the question."""
        if len(pixel_values):
            ids, mask = settings.pop("instruction")
            settings["qformer_input_ids"] = ids.repeat(len(pixel_values), 1)
            settings["qformer_attention_mask"] = mask.repeat(len(pixel_values), 1)
        return super().reference(model, pixel_values, input_ids, attention_mask, **settings)
