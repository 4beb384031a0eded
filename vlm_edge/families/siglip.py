"""SigLIP: Zhai et al. 2023, arXiv:2303.15343, and SigLIP 2 at fixed resolution, arXiv:2502.14786, as SiglipModel.

Both are CLIPs without a causal mask and without projections. Texts are padded to their full length, and the last
token's state is the text's embedding, be it padding; whether padding is masked is the tokenizer's to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_edge.checkpoints.config import read_config
from vlm_edge.checkpoints.processors import TOKENIZER_NAME, check_tokens, read_text_processing
from vlm_edge.checkpoints.spiece import MODEL_NAME, siglip_tokenizer
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import TrainingBatch
from vlm_edge.families.clip import Clip
from vlm_edge.families.parts.attention_masks import additive_mask, visible_tokens
from vlm_edge.processing.manifest import TextProcessing


class VisionEncoder(nn.Module):
    """pixel_values (images, 3, height, width) -> image_embeds (images, dim), L2-normalised: attention pooling by a
    learnt query."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (normalize(self.tower(pixel_values=pixel_values).pooler_output, dim=-1),)


class TextEncoder(nn.Module):
    """input_ids, attention_mask (texts, tokens) -> text_embeds (texts, dim), L2-normalised: the last token's state."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.text_model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden = self.tower.embeddings(input_ids=input_ids)
        mask = additive_mask(visible_tokens(attention_mask))
        hidden = self.tower.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
        pooled = self.tower.head(self.tower.final_layer_norm(hidden[:, -1]))
        return (normalize(pooled, dim=-1),)


class Siglip(Clip):
    """SiglipModel. The pooling attention of the vision tower has one fused projection, so it is no attention site."""

    name = "siglip"
    architectures: tuple[str, ...] = ("SiglipModel",)
    config_class: Any = SiglipConfig
    model_class: Any = SiglipModel
    image_processor_class: Any = SiglipImageProcessorPil
    vision_encoder_class: type[nn.Module] = VisionEncoder
    text_encoder_class: type[nn.Module] = TextEncoder
    lowercase = False
    """Whether transformers' tokenizer class lower-cases texts by itself."""

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        """tokenizer.json's; where SigLIP 1's SentencePiece file lies beside it, held to that.

        Raises:
            VlmEdgeError: there is only the SentencePiece file, or the two give different tokens.
        """
        source = checkpoint / MODEL_NAME
        hint = f"write it from {MODEL_NAME}: python -m {siglip_tokenizer.__module__} FOLDER"
        if source.is_file() and not (checkpoint / TOKENIZER_NAME).is_file():
            raise VlmEdgeError(f"{checkpoint}: {MODEL_NAME} but no {TOKENIZER_NAME}, which the device reads", hint)
        config = self.config_class.from_dict(read_config(checkpoint))
        spec = read_text_processing(
            checkpoint,
            config.text_config.max_position_embeddings,
            fixed_length=True,
            lowercase=self.lowercase,
        )
        if source.is_file():
            tokenizer = siglip_tokenizer(source)
            tokenizer.enable_truncation(spec.max_length)
            check_tokens(checkpoint, spec, lambda text: tokenizer.encode(text).ids, f"{MODEL_NAME} does", hint)
        return spec

    def logit_bias(self, model: nn.Module) -> float | None:
        siglip: Any = model
        return float(siglip.logit_bias.detach())

    def task_logits(self, model: nn.Module, image_features: Tensor, batch: TrainingBatch) -> Tensor:
        """exp(logit_scale) times the cosine similarities, plus logit_bias (questions, labels)."""
        siglip: Any = model
        logits: Tensor = super().task_logits(model, image_features, batch) + siglip.logit_bias
        return logits
