"""A small IDEFICS with random weights."""

from __future__ import annotations

from pathlib import Path

import byte_tokenizer
import tiny_vlm
import transformers

MODEL = transformers.IdeficsForVisionText2Text
SPECIAL = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
PROCESSOR = {
    "image_processor_type": "IdeficsImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def checkpoint_of(folder: Path) -> Path:
    """The special tokens have a table of their own, as in the published models."""
    vocabulary = byte_tokenizer.write_byte_tokenizer(folder, SPECIAL)
    config = transformers.IdeficsConfig(
        **tiny_vlm.TEXT | {"num_hidden_layers": 4},
        vocab_size=vocabulary - 3,
        additional_vocab_size=3,
        cross_layer_interval=2,
        qk_layer_norms=True,
        use_resampler=True,
        alpha_initializer="ones",
        alpha_type="vector",
        vision_config={
            "embed_dim": 24,
            "image_size": 32,
            "patch_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        perceiver_config={
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 10,
            "qk_layer_norms_perceiver": True,
        },
    )
    tiny_vlm.write_checkpoint(folder, MODEL(config), PROCESSOR)
    return folder
