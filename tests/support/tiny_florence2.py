"""A small Florence-2 with random weights."""

from __future__ import annotations

from pathlib import Path

import transformers
from family_checkpoints import CLS, DEC, PAD, SEP, VOCABULARY, change_json, write_checkpoint

MODEL = transformers.Florence2ForConditionalGeneration
TOKENS = 32


def checkpoint_of(folder: Path) -> Path:
    """16 x 16 images become 2 x 2 cells and their mean: five image tokens."""
    config = transformers.Florence2Config(
        vision_config={
            "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
            "embed_dim": [16, 32], "depths": [1, 1], "num_heads": [2, 4], "num_groups": [2, 4], "window_size": 3,
            "projection_dim": 32, "mlp_ratio": 2.0,
        },
        text_config={
            "model_type": "bart", "d_model": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 48,
            "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": PAD, "bos_token_id": CLS,
            "eos_token_id": SEP, "decoder_start_token_id": SEP, "scale_embedding": True,
        },
        image_token_id=DEC, pad_token_id=PAD, bos_token_id=CLS, eos_token_id=SEP, decoder_start_token_id=SEP,
    )  # fmt: skip
    generation = {
        "decoder_start_token_id": SEP, "bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD,
        "forced_bos_token_id": CLS, "no_repeat_ngram_size": 3, "num_beams": 3, "max_new_tokens": TOKENS,
    }  # fmt: skip
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"height": 16, "width": 16}, "resample": 3,
                 "do_center_crop": False, "image_seq_length": 5}  # fmt: skip
    write_checkpoint(
        folder,
        MODEL(config),
        processor,
        generation=generation,
    )
    change_json(
        folder / "tokenizer_config.json",
        model_max_length=1024,
        bos_token="[CLS]",
        eos_token="[SEP]",
        extra_special_tokens={"image_token": "[DEC]"},
    )
    return folder
