"""A checkpoint's image processor and tokenizer, as the manifest's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import Pixels, preprocess
from vlm_edge.processing.manifest import ImageProcessing, Prompt, TextProcessing
from vlm_edge.processing.pictures import picture_of
from vlm_edge.processing.text import TextEncoder

TOKENIZER_NAME = "tokenizer.json"
_PROBES = ("a photo of a cat.", "What's in the picture, 3 DOGS?", "na\u00efve \u2014 \u4e2d")
"""Texts on which the tokenizer of the device is held to transformers'."""
_PROBE_SIZES = ((37, 61), (90, 40))
"""Heights and widths of images on which preprocessing is held to transformers'."""


def read_image_processing(checkpoint: Path, processor_class: Any) -> ImageProcessing:
    """What ``processor_class`` (a PIL image processor of transformers) does with the settings in ``checkpoint``.

    Raises:
        VlmEdgeError: the settings are missing, or :func:`image_processing_of` refuses them.
    """
    return image_processing_of(load_image_processor(checkpoint, processor_class), checkpoint)


def load_image_processor(checkpoint: Path, processor_class: Any) -> Any:
    """transformers' own image processor, with the settings in ``checkpoint``.

    Raises:
        VlmEdgeError: there are none.
    """
    try:
        return processor_class.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError) as error:
        raise VlmEdgeError(
            f"{checkpoint}: no usable image processor (preprocessor_config.json or processor_config.json)",
            "copy preprocessor_config.json from the model's page into the folder",
        ) from error


def image_processing_of(processor: Any, checkpoint: Path, *, longest_edge: int | None = None) -> ImageProcessing:
    """What one PIL image processor of transformers does; ``checkpoint`` is named in errors, and ``longest_edge`` is
    what the processor bounds the longer side by without a setting that says so.

    Raises:
        VlmEdgeError: it does something that the manifest can't say.
    """
    crop = bool(processor.do_center_crop)
    size, crop_size = processor.size or {}, processor.crop_size or {}
    final = crop_size if crop else size
    square = final.get("shortest_edge") if crop else None
    height, width, shortest_edge = final.get("height", square), final.get("width", square), size.get("shortest_edge")
    resize_to = None if size.get("height") is None else (size["height"], size["width"])
    if not processor.do_resize or height is None or width is None or (shortest_edge is None and resize_to is None):
        found = (
            f"do_resize={processor.do_resize}, size={dict(size)}, do_center_crop={crop}, crop_size={dict(crop_size)}"
        )
        raise VlmEdgeError(
            f"{checkpoint}: the image processor must resize to height x width, or resize shortest_edge and then crop; "
            f"got {found}",
            "set size (and crop_size) in preprocessor_config.json",
        )
    spec = ImageProcessing(
        height=height,
        width=width,
        shortest_edge=shortest_edge,
        longest_edge=longest_edge,
        multiple_of=getattr(processor, "size_divisor", None),
        resize_to=resize_to if resize_to != (height, width) else None,
        center_crop=crop and (shortest_edge is not None or resize_to != (height, width)),
        bgr=bool(getattr(processor, "do_flip_channel_order", False)),
        **pixel_settings(processor),
    )
    _check_images(checkpoint, processor, spec)
    return spec


def pixel_settings(processor: Any) -> dict[str, Any]:
    """How a processor scales pixels, as fields of :class:`ImageProcessing`."""
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return {
        "resample": int(processor.resample),
        "rescale_factor": processor.rescale_factor if processor.do_rescale else 1.0,
        "mean": tuple(mean),
        "std": tuple(std),
    }


def checked_pictures(
    checkpoint: Path, processor: Any, spec: ImageProcessing, expected: Callable[[Pixels], Mapping[str, Any]]
) -> ImageProcessing:
    """``spec``, if a picture's inputs are what the processor makes of it: ``expected(image)`` by input name.

    Raises:
        VlmEdgeError: they aren't.
    """
    prompt = Prompt(layouts=("",), image_token="", image_token_id=0, image_tokens=1)
    step = spec.rescale_factor / min(spec.std)
    for image in _probe_images():
        actual = picture_of(image, spec, prompt).inputs
        for name, values in expected(image).items():
            if values.shape != actual[name].shape or np.abs(values - actual[name]).max() > step:
                raise _not_said(checkpoint, processor)
    return spec


def _probe_images() -> list[Pixels]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _PROBE_SIZES]


def _not_said(checkpoint: Path, processor: Any) -> VlmEdgeError:
    return VlmEdgeError(
        f"{checkpoint}: {type(processor).__name__} does something with images that the manifest can't say",
        "compare preprocessor_config.json with that of a model of this architecture",
    )


def _check_images(checkpoint: Path, processor: Any, spec: ImageProcessing) -> None:
    """Hold ``spec`` to the processor itself, so that a setting that the manifest can't say is told, not lost."""
    images = _probe_images()
    expected = processor(images=images, return_tensors="np")["pixel_values"]
    actual = preprocess(images, spec)
    step = spec.rescale_factor / min(spec.std)
    if expected.shape != actual.shape or np.abs(expected - actual).max() > step:
        raise _not_said(checkpoint, processor)


def read_text_processing(
    checkpoint: Path, max_positions: int, *, fixed_length: bool = False, lowercase: bool = False
) -> TextProcessing:
    """The tokenizer of ``checkpoint``; texts end at ``max_positions`` or the tokenizer's own limit.

    ``fixed_length``: every text is padded to that limit, and padding is masked only if the tokenizer gives a mask.
    ``lowercase``: transformers lower-cases texts, whatever tokenizer.json says.

    Raises:
        VlmEdgeError: tokenizer.json is missing or unreadable, or there is no padding token.
    """
    if not (checkpoint / TOKENIZER_NAME).is_file():
        raise VlmEdgeError(
            f"{checkpoint}: no {TOKENIZER_NAME}, the tokenizer in the form that the device reads",
            "write it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    try:
        tokenizer = _load_tokenizer(checkpoint)
    except (OSError, ValueError) as error:
        raise VlmEdgeError(
            f"{checkpoint}: the tokenizer can't be read: {error}", f"copy {TOKENIZER_NAME} from the model's page again"
        ) from error
    if tokenizer.pad_token_id is None:
        raise VlmEdgeError(
            f"{checkpoint}: the tokenizer has no padding token", "set pad_token in tokenizer_config.json"
        )
    max_length = min(tokenizer.model_max_length, max_positions)
    spec = TextProcessing(
        tokenizer=TOKENIZER_NAME,
        pad_token_id=tokenizer.pad_token_id,
        max_length=max_length,
        pad_to=max_length if fixed_length else None,
        padding_side=tokenizer.padding_side if fixed_length else "right",
        lowercase=lowercase,
        mask_padding=not fixed_length or "attention_mask" in tokenizer.model_input_names,
    )
    _check_texts(checkpoint, tokenizer, spec)
    return spec


def _load_tokenizer(checkpoint: Path) -> Any:
    """transformers' tokenizer. Where its class is Python code over a package that isn't there (SiglipTokenizer over
    sentencepiece), what transformers makes of tokenizer.json alone."""
    try:
        return AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except ImportError:
        return PreTrainedTokenizerFast.from_pretrained(checkpoint, local_files_only=True)


def _check_texts(checkpoint: Path, tokenizer: Any, spec: TextProcessing) -> None:
    """Hold tokenizer.json to the tokenizer that transformers makes of the folder, token for token."""
    check_tokens(
        checkpoint,
        spec,
        lambda text: tokenizer(text, truncation=True, max_length=spec.max_length)["input_ids"],
        f"transformers' {type(tokenizer).__name__} does",
        "write it anew with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )


def check_tokens(
    checkpoint: Path, spec: TextProcessing, expected: Callable[[str], Sequence[int]], whose: str, hint: str
) -> None:
    """Hold tokenizer.json to ``expected``, text -> ids, token for token.

    Raises:
        VlmEdgeError: it gives a text other tokens than ``whose``.
    """
    encoder = TextEncoder(checkpoint, spec.model_copy(update={"pad_to": None}))
    for text in _PROBES:
        actual, wanted = encoder.encode([text])[0][0].tolist(), list(expected(text))
        if actual != wanted:
            raise VlmEdgeError(
                f"{checkpoint}: {TOKENIZER_NAME} gives {text!r} other tokens ({actual}) than {whose} ({wanted})", hint
            )


def encode_texts(
    checkpoint: Path, spec: TextProcessing, texts: Sequence[str], *, special_tokens: bool = True
) -> tuple[Tensor, Tensor]:
    """Tokenize for training, as on the device: input_ids and attention_mask (texts, tokens) int64.

    ``special_tokens=False`` leaves out what the tokenizer would put around a text.
    """
    input_ids, attention_mask = TextEncoder(checkpoint, spec).encode(texts, special_tokens=special_tokens)
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
