"""Small TrOCR, ViT-GPT2, ViT-BERT and ViT-mBART with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from family_checkpoints import CLS, PAD, SEP, TOWER, VOCABULARY, write_checkpoint
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

MODEL = transformers.VisionEncoderDecoderModel
TOKENS = 32
LENGTH = 40
"""Positions of the decoders: TOKENS and the start token have to fit."""
SHARED = {"vocab_size": VOCABULARY, "bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD,
          "is_decoder": True, "add_cross_attention": True, "max_position_embeddings": LENGTH}  # fmt: skip
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}


@dataclass(frozen=True)
class Case:
    """An encoder's and a decoder's config, the processor, and the attention sites of two decoder layers."""

    encoder: Any
    decoder: Any
    processor: Any
    sites: int


def vit(**changes: Any) -> Any:
    return transformers.ViTConfig(**TOWER, image_size=32, patch_size=8, **changes)


CASES = {
    "trocr": Case(
        transformers.DeiTConfig(**TOWER | {"hidden_size": 24}, image_size=32, patch_size=8),
        transformers.TrOCRConfig(**SHARED, **BART, cross_attention_hidden_size=24, layernorm_embedding=True),
        DeiTImageProcessorPil, 4,
    ),
    "trocr sinusoidal": Case(
        vit(), transformers.TrOCRConfig(**SHARED, **BART, cross_attention_hidden_size=32, scale_embedding=True,
                                        use_learned_position_embeddings=False, layernorm_embedding=False),
        ViTImageProcessorPil, 4,
    ),
    "gpt2": Case(
        vit(hidden_act="gelu_new"), transformers.GPT2Config(**SHARED, n_embd=24, n_layer=2, n_head=4, n_inner=40),
        ViTImageProcessorPil, 4,
    ),
    "bert": Case(vit(), transformers.BertConfig(**SHARED, **TOWER), ViTImageProcessorPil, 4),
    "mbart": Case(vit(), transformers.MBartConfig(**SHARED, **BART), ViTImageProcessorPil, 4),
}  # fmt: skip


def checkpoint_of(folder: Path, case: Case, **generation: Any) -> Path:
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(case.encoder, case.decoder)
    processor = {
        "image_processor_type": case.processor.__name__.removesuffix("Pil"),
        "size": {"height": 32, "width": 32},
        "crop_size": {"height": 32, "width": 32},
    }
    settings = {"decoder_start_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD, "max_new_tokens": TOKENS}
    write_checkpoint(
        folder, transformers.VisionEncoderDecoderModel(config), processor, generation=settings | generation
    )
    return folder
