"""How a checkpoint generates, as the manifest's data: generation_config.json, or what config.json says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Generation

SETTINGS_NAME = "generation_config.json"
MAX_NEW_TOKENS = 20
"""What transformers' ``generate`` adds at most, unless it is told otherwise (5.23; generation/utils.py)."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}),
    "exponential_decay_length_penalty": (None,),
}
"""What would change greedy decoding, and where it does nothing."""


def load_settings(checkpoint: Path, config: Any) -> GenerationConfig:
    """generation_config.json of a folder, or else what ``config`` (a transformers config) says."""
    if (checkpoint / SETTINGS_NAME).is_file():
        return GenerationConfig.from_pretrained(checkpoint, local_files_only=True)
    return GenerationConfig.from_model_config(config)


def greedy_settings(checkpoint: Path, config: Any) -> GenerationConfig:
    """As :func:`load_settings`, when the runtime can follow them.

    Raises:
        VlmEdgeError: one of them changes what greedy decoding chooses.
    """
    settings = load_settings(checkpoint, config)
    for name, neutral in _NEUTRAL.items():
        if (value := getattr(settings, name, None)) not in neutral:
            raise VlmEdgeError(
                f"{checkpoint}: generation setting {name}: {value!r}; the runtime decodes greedily without it",
                f"remove it from {SETTINGS_NAME}, and measure what that does",
            )
    return settings


def read_generation(checkpoint: Path, config: Any, longest: int) -> Generation:
    """Greedy decoding as ``generate`` of an encoder-decoder does it with this folder's settings.

    Args:
        checkpoint: the folder.
        config: the model's transformers config.
        longest: how many tokens the decoder has positions for.

    Raises:
        VlmEdgeError: there is no start or end token, or a setting asks for what the runtime can't do.
    """
    settings = greedy_settings(checkpoint, config)
    start = settings.decoder_start_token_id if settings.decoder_start_token_id is not None else settings.bos_token_id
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if start is None or ends[0] is None:
        raise VlmEdgeError(
            f"{checkpoint}: no decoder_start_token_id or eos_token_id, so no text could begin or end",
            f"write them into {SETTINGS_NAME}",
        )
    asked = settings.max_new_tokens or ((settings.max_length or 0) - 1)
    pad = settings.pad_token_id if settings.pad_token_id is not None else ends[0]
    return Generation(
        start_token_id=start,
        eos_token_id=ends[0],
        other_eos_token_ids=tuple(ends[1:]),
        pad_token_id=pad,
        max_new_tokens=min(asked if asked > 0 else MAX_NEW_TOKENS, longest - 1),
        first_token_id=settings.forced_bos_token_id,
        last_token_id=settings.forced_eos_token_id,
        no_repeat_ngram=settings.no_repeat_ngram_size or 0,
    )
