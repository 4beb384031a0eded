"""Can every token id that the tokenizer or the settings give be looked up? Asked of the model before it is exported:
on the device such an id ends in a Gather that fails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import ComponentExport
from vlm_edge.processing.manifest import Generation, PipelineManifest

IDS = "input_ids"
"""The input that token ids are looked up from."""


def check_ids(checkpoint: Path, manifest: PipelineManifest, components: Mapping[str, ComponentExport]) -> None:
    """
    Raises:
        VlmEdgeError: the tokenizer has a token, or the settings an id, beyond a component's embedding table, or beyond
            the logits of its decoder; both are named.
    """
    if manifest.text is None:
        return
    tokenizer = Tokenizer.from_file(str(checkpoint / manifest.text.tokenizer))
    tokens = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    fed = {max(tokens): f"tokenizer.json: token {tokens[max(tokens)]!r}"} if tokens else {}
    fed[manifest.text.pad_token_id] = "the tokenizer's pad_token"
    if manifest.generation is not None:
        fed[manifest.generation.start_token_id] = "the start token"
    largest = max(fed)
    for name, component in components.items():
        if IDS in component.example and not _taken(component, largest):
            raise VlmEdgeError(
                f"{checkpoint}: {fed[largest]} has id {largest}, and the {name}'s embedding table has "
                f"{_rows(component, largest)} rows",
                "copy tokenizer.json, config.json and the weights from one source; or, where tokens were added, "
                "model.resize_token_embeddings(len(tokenizer)), train, and save the model again",
            )
        if manifest.generation is not None and "logits" in component.output_shapes:
            _check_chosen(checkpoint, manifest.generation, int(component.output_shapes["logits"][-1]))


def _taken(component: ComponentExport, index: int) -> bool:
    """True if the component can look up a token id, in place of the last of its example."""
    ids = component.example[IDS].clone()
    ids[..., -1] = index
    feed: dict[str, Tensor] = {**component.example, IDS: ids}
    try:
        with torch.no_grad():
            component.module(*feed.values())
    except IndexError:
        return False
    return True


def _rows(component: ComponentExport, beyond: int) -> int:
    """The number of ids that the component can look up: at most ``beyond``."""
    least, most = 0, beyond
    while least < most:
        middle = (least + most) // 2
        least, most = (middle + 1, most) if _taken(component, middle) else (least, middle)
    return least


def _check_chosen(checkpoint: Path, generation: Generation, vocabulary: int) -> None:
    """Ids that decoding chooses, forces or forbids are below the number of logits."""
    ids = {
        "eos_token_id": generation.eos_token_ids,
        "forced_bos_token_id": [generation.first_token_id],
        "forced_eos_token_id": [generation.last_token_id],
        "suppress_tokens": generation.suppress_tokens,
        "begin_suppress_tokens": generation.begin_suppress_tokens,
        "bad_words_ids": [token for word in generation.bad_words_ids for token in word],
    }
    for name, values in ids.items():
        largest = max((value for value in values if value is not None), default=-1)
        if largest >= vocabulary:
            raise VlmEdgeError(
                f"{checkpoint}: generation setting {name}: {largest}, and the model chooses among {vocabulary} tokens",
                "copy generation_config.json and config.json from one source",
            )
