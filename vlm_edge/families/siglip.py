"""SigLIP: Zhai et al. 2023, arXiv:2303.15343, and SigLIP 2 at fixed resolution, arXiv:2502.14786, as SiglipModel.

Both are CLIPs without a causal mask and without projections. Texts are padded to their full length, and the last
token's state is the text's embedding, be it padding; whether padding is masked is the tokenizer's to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_edge.checkpoints.processors import TOKENIZER_NAME, check_tokens, read_text_processing
from vlm_edge.checkpoints.spiece import MODEL_NAME, siglip_tokenizer
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.clip import Clip, TextEncoder
from vlm_edge.families.parts.attention import padding_mask
from vlm_edge.processing.manifest import TextProcessing


class SiglipTextEncoder(TextEncoder):
    """As CLIP's, whose tokens see each other, and the last one's state is the text's."""

    def mask(self, attention_mask: Tensor) -> Tensor:
        return padding_mask(attention_mask)

    def pooled(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        pooled: Tensor = self.tower.head(self.tower.final_layer_norm(hidden[:, -1]))
        return pooled


class Siglip(Clip):
    """SiglipModel. The pooling attention of the vision tower has one fused projection, so it is no attention site."""

    name = "siglip"
    architectures: tuple[str, ...] = ("SiglipModel",)
    config_class: Any = SiglipConfig
    model_class: Any = SiglipModel
    image_processor_class: Any = SiglipImageProcessorPil
    text_encoder_class: type[nn.Module] = SiglipTextEncoder
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
        positions = self.config(checkpoint).text_config.max_position_embeddings
        spec = read_text_processing(checkpoint, positions, fixed_length=True, lowercase=self.lowercase)
        if source.is_file():
            tokenizer = siglip_tokenizer(source)
            tokenizer.enable_truncation(spec.max_length)
            check_tokens(checkpoint, spec, lambda text: tokenizer.encode(text).ids, f"{MODEL_NAME} does", hint)
        return spec

    def logit_bias(self, model: Any) -> float | None:
        return float(model.logit_bias.detach())
