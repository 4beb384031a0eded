"""InstructBLIP: Dai et al. 2023, arXiv:2305.06500, as transformers' InstructBlipForConditionalGeneration.

BLIP-2 whose Q-Former reads the question too, with a tokenizer of its own, so that the connector is run once for every
question about an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

from vlm_edge.checkpoints.chat_template import FIRST, MAX_IMAGES, QUESTION, Fallback
from vlm_edge.checkpoints.processors import read_text_processing
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.blip2 import Blip2
from vlm_edge.families.parts.attention import padding_mask
from vlm_edge.families.parts.component import Inputs, text_example
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
        mask = padding_mask(seen)
        for layer in self.qformer.encoder.layer:
            hidden = layer(hidden, mask, image_features, query_length=queries)
        return (self.projection(hidden[:, :queries]),)


class InstructBlip(Blip2):
    """InstructBlipForConditionalGeneration with a Vicuna."""

    name = "instructblip"
    architectures: tuple[str, ...] = ("InstructBlipForConditionalGeneration",)
    config_class: Any = InstructBlipConfig
    model_class: Any = InstructBlipForConditionalGeneration
    fallback: Fallback | None = Fallback(
        tuple(f"{'<image>' * images}{FIRST}{QUESTION}" for images in range(MAX_IMAGES + 1)), special_tokens=False
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

    def connector_inputs(self, model: Any) -> Inputs:
        """The question's tokens, the last row's padded."""
        text = text_example(model.qformer.embeddings.word_embeddings.num_embeddings, QUESTION_TOKENS)
        return {f"qformer_{name}": (values, {0: "images", 1: "question_tokens"}) for name, values in text.items()}

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """As BLIP-2's; every image is given the question."""
        if "pixel_values" in inputs:
            ids, mask = (each.repeat(len(inputs["pixel_values"]), 1) for each in settings.pop("instruction"))
            inputs = {**inputs, "qformer_input_ids": ids, "qformer_attention_mask": mask}
        return super().reference(model, inputs, **settings)
