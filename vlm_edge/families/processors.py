"""A checkpoint's image processor and tokenizer, as the manifest's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import ImageProcessing, TextProcessing

TOKENIZER_NAME = "tokenizer.json"


def read_image_processing(checkpoint: Path, processor_class: Any) -> ImageProcessing:
    """What ``processor_class`` (a PIL image processor of transformers) does with the settings in ``checkpoint``.

    Raises:
        VlmEdgeError: the settings are missing, or ask for something that the manifest can't say.
    """
    try:
        processor = processor_class.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError) as error:
        raise VlmEdgeError(
            f"{checkpoint}: no usable image processor (preprocessor_config.json or processor_config.json)",
            "copy preprocessor_config.json from the model's page into the folder",
        ) from error
    crop = bool(processor.do_center_crop)
    size, crop_size = processor.size or {}, processor.crop_size or {}
    final = crop_size if crop else size
    height, width, shortest_edge = final.get("height"), final.get("width"), size.get("shortest_edge")
    exact = (size.get("height"), size.get("width")) == (height, width)
    if not processor.do_resize or height is None or width is None or (shortest_edge is None and not exact):
        found = (
            f"do_resize={processor.do_resize}, size={dict(size)}, do_center_crop={crop}, crop_size={dict(crop_size)}"
        )
        raise VlmEdgeError(
            f"{checkpoint}: the image processor must resize to height x width, or resize shortest_edge and then crop; "
            f"got {found}",
            "set size (and crop_size) in preprocessor_config.json",
        )
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return ImageProcessing(
        height=height,
        width=width,
        shortest_edge=shortest_edge,
        resample=int(processor.resample),
        center_crop=crop and shortest_edge is not None,
        rescale_factor=processor.rescale_factor if processor.do_rescale else 1.0,
        mean=tuple(mean),
        std=tuple(std),
    )


def read_text_processing(checkpoint: Path, max_positions: int) -> TextProcessing:
    """The tokenizer of ``checkpoint``; texts end at ``max_positions`` or the tokenizer's own limit.

    Raises:
        VlmEdgeError: tokenizer.json is missing or unreadable, or there is no padding token.
    """
    if not (checkpoint / TOKENIZER_NAME).is_file():
        raise VlmEdgeError(
            f"{checkpoint}: no {TOKENIZER_NAME}, the tokenizer in the form that the device reads",
            "write it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError) as error:
        raise VlmEdgeError(
            f"{checkpoint}: the tokenizer can't be read: {error}", f"copy {TOKENIZER_NAME} from the model's page again"
        ) from error
    if tokenizer.pad_token_id is None:
        raise VlmEdgeError(
            f"{checkpoint}: the tokenizer has no padding token", "set pad_token in tokenizer_config.json"
        )
    return TextProcessing(
        tokenizer=TOKENIZER_NAME,
        pad_token_id=tokenizer.pad_token_id,
        max_length=min(tokenizer.model_max_length, max_positions),
    )


def encode_texts(
    checkpoint: Path, spec: TextProcessing, texts: Sequence[str], *, special_tokens: bool = True
) -> tuple[Tensor, Tensor]:
    """Tokenize for training: input_ids and attention_mask (texts, tokens) int64, padded on the right to the longest.

    The same tokenizer.json as on the device; ``special_tokens=False`` leaves out what it would put around a text.
    """
    tokenizer = Tokenizer.from_file(str(checkpoint / spec.tokenizer))
    tokenizer.no_padding()
    tokenizer.enable_truncation(spec.max_length)
    encoded = [torch.tensor(row.ids) for row in tokenizer.encode_batch(list(texts), add_special_tokens=special_tokens)]
    input_ids = pad_sequence(encoded, batch_first=True, padding_value=spec.pad_token_id)
    attention_mask = pad_sequence([torch.ones_like(row) for row in encoded], batch_first=True)
    return input_ids.to(torch.int64), attention_mask.to(torch.int64)
