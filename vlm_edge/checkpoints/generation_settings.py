"""A checkpoint's generation settings, as the manifest's data: generation_config.json, else those in config.json.

A setting is followed as transformers' ``generate`` does (5.23), or it is named in ``Generation.not_followed``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import GenerationConfig

from vlm_edge.checked import first_fault
from vlm_edge.checkpoints.config import read_json_object
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Generation

SETTINGS_NAME = "generation_config.json"
MAX_NEW_TOKENS = 20
"""Most tokens that ``generate`` adds by default (generation/utils.py)."""
Id = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Factor = Annotated[float, Field(gt=0)]


class Followed(BaseModel):
    """The settings that decoding follows, under the names and with the types of generation_config.json."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    max_length: Count | None = None
    max_new_tokens: Count | None = None
    min_length: Count | None = None
    min_new_tokens: Count | None = None
    repetition_penalty: Factor | None = None
    no_repeat_ngram_size: Count | None = None
    bad_words_ids: list[Annotated[list[Id], Field(min_length=1)]] | None = None
    suppress_tokens: list[Id] | None = None
    begin_suppress_tokens: list[Id] | None = None
    exponential_decay_length_penalty: tuple[Count, Factor] | None = None
    forced_bos_token_id: Id | None = None
    forced_eos_token_id: Id | None = None
    bos_token_id: Id | None = None
    eos_token_id: Id | list[Id] | None = None
    pad_token_id: int | None = None
    decoder_start_token_id: Id | None = None


_LENGTHS_AND_IDS = {
    "max_length", "max_new_tokens", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
}  # fmt: skip
_SAMPLING = {
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
}  # fmt: skip
"""Without effect unless tokens are drawn."""
_BEAMS = {"early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"}
"""Without effect on one beam."""
_WITHOUT_EFFECT = {
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "return_dict_in_generate", "output_scores",
    "output_logits", "output_attentions", "output_hidden_states", "renormalize_logits", "remove_invalid_values",
    "compile_config", "disable_compile", "continuous_batching_config", "low_memory", "prefill_chunk_size",
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type", "use_mtp", "transformers_version",
}  # fmt: skip
"""Settings that never change the token that greedy decoding takes: they are about speed, memory and other outputs."""
_NEUTRAL: dict[str, Any] = {
    "do_sample": False, "num_beams": 1, "num_return_sequences": 1, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "guidance_scale": 1, "sequence_bias": [], "token_healing": False,
    "penalty_alpha": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0,
}  # fmt: skip
"""Values of other settings that do nothing; for every setting None does."""


@dataclass(frozen=True)
class Settings:
    """A checkpoint's settings: those that are followed, and the others by name, as JSON."""

    place: Path
    followed: Followed
    not_followed: dict[str, str]

    @property
    def eos_token_ids(self) -> list[int]:
        """Every end token; none where the settings name none."""
        ends = self.followed.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    @property
    def pad_token_id(self) -> int | None:
        """None where the settings name none, or a negative one, as some checkpoints do."""
        pad = self.followed.pad_token_id
        return None if pad is None or pad < 0 else pad

    def for_transformers(self) -> GenerationConfig:
        """The followed settings without the lengths, which the caller of ``generate`` gives."""
        values = self.followed.model_dump(exclude_none=True, exclude={"max_length", "max_new_tokens"})
        return GenerationConfig(**{name: value for name, value in values.items() if value != []})

    def generation(self, *, start: int, ends: Sequence[int], pad: int, positions: int | None = None) -> Generation:
        """As the manifest's data, with these token ids.

        Args:
            start: the start token.
            ends: the end tokens.
            pad: the padding token.
            positions: length of the decoder's table of positions; None where they are computed.

        Raises:
            VlmEdgeError: a value is out of range.
        """
        followed = self.followed
        total = None if followed.max_new_tokens else followed.max_length
        new = followed.max_new_tokens or (max(total - 1, 1) if total else MAX_NEW_TOKENS)
        try:
            return Generation(
                start_token_id=start,
                eos_token_id=ends[0],
                other_eos_token_ids=tuple(ends[1:]),
                pad_token_id=pad,
                max_new_tokens=new if positions is None else min(new, positions),
                max_length=total or None,
                positions=positions,
                first_token_id=followed.forced_bos_token_id,
                last_token_id=followed.forced_eos_token_id,
                no_repeat_ngram=followed.no_repeat_ngram_size or 0,
                min_length=followed.min_length or 0,
                min_new_tokens=followed.min_new_tokens or 0,
                repetition_penalty=followed.repetition_penalty or 1.0,
                bad_words_ids=tuple(map(tuple, followed.bad_words_ids or ())),
                suppress_tokens=tuple(followed.suppress_tokens or ()),
                begin_suppress_tokens=tuple(followed.begin_suppress_tokens or ()),
                exponential_decay_length_penalty=followed.exponential_decay_length_penalty,
                not_followed=self.not_followed,
            )
        except ValidationError as error:
            raise _refusal(self.place, error) from error


def read_settings(checkpoint: Path, config: Any, *, inner: bool = False) -> Settings:
    """Read generation_config.json of a folder, or the settings in ``config`` (a transformers config) where it has none.

    ``inner``: ``generate`` is called on a model inside, which sees nothing of that file (BLIP, BLIP-2): only its
    lengths and token ids are taken.

    Raises:
        VlmEdgeError: the file is no JSON object, or a value has another type than ``generate`` takes; the message
            names both.
    """
    path = checkpoint / SETTINGS_NAME
    if path.is_file():
        values, place = read_json_object(path), path
    else:
        values, place = GenerationConfig.from_model_config(config).to_dict(), checkpoint / "config.json"
    taken = _LENGTHS_AND_IDS if inner else set(Followed.model_fields)
    try:
        followed = Followed.model_validate_json(json.dumps({key: values[key] for key in taken & values.keys()}))
    except ValidationError as error:
        raise _refusal(place, error) from error
    return Settings(place, followed, _others(values, taken))


def _others(values: Mapping[str, Any], taken: set[str]) -> dict[str, str]:
    """The settings that would change what greedy decoding gives and are not taken."""
    inert = _WITHOUT_EFFECT | (set() if values.get("do_sample") else _SAMPLING)
    inert |= _BEAMS if values.get("num_beams") in (None, 1) else set()
    return {
        name: json.dumps(value)[:200]
        for name, value in sorted(values.items())
        if name not in inert | taken and not name.startswith("_") and value not in (None, _NEUTRAL.get(name), [], {})
    }


def _refusal(place: Path, error: ValidationError) -> VlmEdgeError:
    return VlmEdgeError(
        f"{place}: {first_fault(error)}",
        "write the value that transformers' GenerationConfig documents, or leave the setting out",
    )


def read_generation(checkpoint: Path, config: Any, positions: int | None, *, inner: bool = False) -> Generation:
    """Greedy decoding as ``generate`` of an encoder-decoder does it with this folder's settings.

    Args:
        checkpoint: the folder.
        config: the model's transformers config.
        positions: length of the decoder's table of positions; None where they are computed.
        inner: see :func:`read_settings`.

    Raises:
        VlmEdgeError: there is no start or end token, or :func:`read_settings` refuses the file.
    """
    settings = read_settings(checkpoint, config, inner=inner)
    followed, ends = settings.followed, settings.eos_token_ids
    start = followed.decoder_start_token_id if followed.decoder_start_token_id is not None else followed.bos_token_id
    if start is None or not ends:
        raise VlmEdgeError(
            f"{checkpoint}: no decoder_start_token_id or eos_token_id, so no text could begin or end",
            f"write them into {SETTINGS_NAME}",
        )
    pad = settings.pad_token_id if settings.pad_token_id is not None else ends[0]
    return settings.generation(start=start, ends=ends, pad=pad, positions=positions)
