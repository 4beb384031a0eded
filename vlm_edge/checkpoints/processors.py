"""A checkpoint's image processor and tokenizer, as the manifest's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

from vlm_edge.checkpoints.pretrained import check_side_files, load_pretrained, load_tokenizer
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.image_inputs import picture_of
from vlm_edge.processing.images import Pixels, read_image
from vlm_edge.processing.manifest import ImageProcessing, Prompt, TextProcessing, Transparency
from vlm_edge.processing.text import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files that an image processor's settings may be in."""
_PROBES = ("a photo of a cat.", "What's in the picture, 3 DOGS?", "na\u00efve \u2014 \u4e2d")
"""Texts on which the tokenizer of the device is held to transformers'."""
MOST_STEPS = 1.001
"""Steps of an 8-bit pixel that the device's may differ by from transformers': one, and float32's rounding."""
_PROBE_SIZES = ((37, 61), (90, 40))
"""Heights and widths of images on which preprocessing is held to transformers'."""


def read_image_processing(checkpoint: Path, default_class: Any, tower: Any = None) -> ImageProcessing:
    """Read the image processor of ``checkpoint`` (:func:`load_image_processor`) as data.

    ``tower``: the config of a vision tower that takes images of one size, its ``image_size``.

    Raises:
        VlmEdgeError: the settings are missing, :func:`image_processing_of` refuses them, or the size is another than
            the tower's.
    """
    processor = load_image_processor(checkpoint, default_class)
    spec = image_processing_of(processor, checkpoint)
    side = getattr(tower, "image_size", None)
    size = (side, side) if isinstance(side, int) else side and tuple(side)
    if size and size != (spec.height, spec.width):
        raise VlmEdgeError(
            f"{checkpoint}: {settings_file(checkpoint)} makes images of {spec.height} x {spec.width} pixels "
            f"({type(processor).__name__}), and config.json's vision tower takes {size[0]} x {size[1]}",
            "copy both files from one source",
        )
    return spec


def settings_file(checkpoint: Path) -> str:
    """The file that an image processor's settings come from."""
    return next((name for name in SETTINGS_FILES if (checkpoint / name).is_file()), SETTINGS_FILES[0])


def load_image_processor(checkpoint: Path, default_class: Any, *, alike: tuple[Any, ...] | None = None) -> Any:
    """transformers' own image processor with the settings in ``checkpoint``: of the class that they name, and of
    ``default_class`` where they name none that transformers has. ``alike``: the only classes whose tiles or patches
    the family can make.

    Raises:
        VlmEdgeError: there are no settings, or they name a class without a PIL version, or none of ``alike``.
    """
    what = "no usable image processor (preprocessor_config.json or processor_config.json)"
    hint = "copy preprocessor_config.json from the model's page into the folder"
    check_side_files(checkpoint)
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint, local_files_only=True)
        found = _named_class(settings) or default_class
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise VlmEdgeError(f"{checkpoint}: {what}", hint) from error
    processor = load_pretrained(found, checkpoint, what, hint)
    if alike and not isinstance(processor, alike):
        raise VlmEdgeError(
            f"{checkpoint}: {settings_file(checkpoint)}: image_processor_type: {found.__name__}; this architecture's "
            f"images are cut by {' or '.join(each.__name__ for each in alike)}",
            "copy preprocessor_config.json and config.json from one source",
        )
    return processor


def _named_class(settings: Mapping[str, Any]) -> Any:
    """The PIL class that ``image_processor_type`` (once ``feature_extractor_type``) names; None for none."""
    named = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if not isinstance(named, str):
        return None
    base = named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    found = get_image_processor_class_from_name(f"{base}Pil")
    if found is None and get_image_processor_class_from_name(base) is not None:
        raise ValueError(f"{base} has no PIL version")
    return found


def image_processing_of(processor: Any, checkpoint: Path, *, longest_edge: int | None = None) -> ImageProcessing:
    """One PIL image processor of transformers as data.

    ``checkpoint`` is named in errors; ``longest_edge`` is a bound of the longer side that the processor keeps without
    a setting for it.

    Raises:
        VlmEdgeError: it does something that the manifest can't say.
    """
    crop = bool(getattr(processor, "do_center_crop", False))
    size, crop_size = processor.size or {}, getattr(processor, "crop_size", None) or {}
    final = crop_size if crop else size
    square = final.get("shortest_edge") if crop else None
    height, width, shortest_edge = final.get("height", square), final.get("width", square), size.get("shortest_edge")
    resize_to = None if size.get("height") is None else (size["height"], size["width"])
    if not processor.do_resize or height is None or width is None or (shortest_edge is None and resize_to is None):
        found = (
            f"do_resize={processor.do_resize}, size={dict(size)}, do_center_crop={crop}, crop_size={dict(crop_size)}"
        )
        raise VlmEdgeError(
            f"{checkpoint}: the image processor ({type(processor).__name__}) must resize to height x width, or resize "
            f"shortest_edge and then crop; got {found}",
            f"set size (and crop_size) in {settings_file(checkpoint)}",
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
    return checked_pictures(checkpoint, processor, spec, processed_pixels)


def processed_pixels(processor: Any, image: Any, _spec: ImageProcessing) -> dict[str, NDArray[Any]]:
    """transformers' processor on one image: ``pixel_values`` (1, 3, height, width)."""
    return {"pixel_values": np.asarray(processor(images=image, return_tensors="np")["pixel_values"])}


def pixel_settings(processor: Any) -> dict[str, Any]:
    """A processor's scaling of pixels, as fields of :class:`ImageProcessing`."""
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return {
        "processor": type(processor).__name__.removesuffix("Pil"),
        "resample": int(processor.resample),
        "rescale_factor": processor.rescale_factor if processor.do_rescale else 1.0,
        "mean": tuple(mean),
        "std": tuple(std),
    }


Processed = Callable[[Any, Any, ImageProcessing], Mapping[str, Any]]
"""(transformers' processor, an image, spec) -> the vision encoder's inputs of that image, by name."""


def checked_pictures(checkpoint: Path, processor: Any, spec: ImageProcessing, processed: Processed) -> ImageProcessing:
    """Hold ``spec`` to transformers' processor on a few images, and add how that one treats transparency.

    Raises:
        VlmEdgeError: it doesn't: the processor does something that the manifest can't say.
    """
    generator = np.random.default_rng(0)
    for size in _PROBE_SIZES:
        image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        if picture_difference(image, spec, processed(processor, image, spec)) > MOST_STEPS:
            raise VlmEdgeError(
                f"{checkpoint}: {type(processor).__name__} does something with images that the manifest can't say",
                f"compare {settings_file(checkpoint)} with that of a model of this architecture",
            )
    clear = Image.fromarray(generator.integers(0, 256, (*_PROBE_SIZES[0], 4), dtype=np.uint8))
    try:
        expected = processed(processor, clear, spec)
    except (ValueError, TypeError, IndexError):  # four channels are no image to it
        return spec
    choices: tuple[Transparency, ...] = ("white", "drop")
    for choice in choices:
        if picture_difference(read_image(clear, choice), spec, expected) <= MOST_STEPS:
            return spec.model_copy(update={"transparency": choice})
    return spec


def picture_difference(image: Pixels, spec: ImageProcessing, expected: Mapping[str, Any]) -> float:
    """The largest difference between the device's picture of an RGB image and a processor's, in steps of an 8-bit
    pixel; infinite where their shapes differ."""
    prompt = Prompt(layouts=("",), image_token="<image>", image_token_id=0, image_tokens=1)
    picture = picture_of(image, spec, prompt)
    worst = 0.0
    for name, values in expected.items():
        actual = picture.inputs.get(name)
        if actual is None or np.shape(values) != actual.shape:
            return float("inf")
        if picture.order is not None:
            actual = actual[picture.order]
        step = spec.rescale_factor / min(spec.std) if name == "pixel_values" else 0.5
        worst = max(worst, float(np.abs(values - actual).max(initial=0.0)) / step)
    return worst


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
    tokenizer = load_tokenizer(checkpoint)
    if tokenizer.pad_token_id is None:
        raise VlmEdgeError(
            f"{checkpoint}: the tokenizer has no padding token", "set pad_token in tokenizer_config.json"
        )
    if not isinstance(tokenizer.model_max_length, (int, float)) or not tokenizer.model_max_length >= 1:
        raise VlmEdgeError(
            f"{checkpoint / 'tokenizer_config.json'}: model_max_length: {tokenizer.model_max_length!r} is no number of "
            "tokens",
            "copy the file from the model's page again",
        )
    max_length = int(min(tokenizer.model_max_length, max_positions))
    spec = TextProcessing(
        tokenizer=TOKENIZER_NAME,
        pad_token_id=tokenizer.pad_token_id,
        max_length=max_length,
        pad_to=max_length if fixed_length else None,
        padding_side=tokenizer.padding_side if fixed_length else "right",
        lowercase=lowercase,
        mask_padding=not fixed_length or "attention_mask" in tokenizer.model_input_names,
    )
    check_tokens(  # tokenizer.json, held to the tokenizer that transformers makes of the folder
        checkpoint,
        spec,
        lambda text: tokenizer(text, truncation=True, max_length=spec.max_length)["input_ids"],
        f"transformers' {type(tokenizer).__name__} does",
        "write it anew with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )
    return spec


def check_tokens(
    checkpoint: Path, spec: TextProcessing, expected: Callable[[str], Sequence[int]], whose: str, hint: str
) -> None:
    """Hold tokenizer.json to ``expected``, text -> ids, token for token.

    Raises:
        VlmEdgeError: it gives a text other tokens than ``whose``.
    """
    encoder = Tokenizer(checkpoint, spec.model_copy(update={"pad_to": None}))
    for text in _PROBES:
        actual, wanted = encoder.encode([text], cut=True)[0][0].tolist(), list(expected(text))
        if actual != wanted:
            raise VlmEdgeError(
                f"{checkpoint}: {TOKENIZER_NAME} gives {text!r} other tokens ({actual}) than {whose} ({wanted})", hint
            )


def encode_texts(
    checkpoint: Path, spec: TextProcessing, texts: Sequence[str], *, special_tokens: bool = True
) -> tuple[Tensor, Tensor]:
    """Tokenize for training, as on the device: input_ids and attention_mask (texts, tokens) int64.

    ``special_tokens=False`` leaves out the tokens that the tokenizer would put around a text.
    """
    input_ids, attention_mask = Tokenizer(checkpoint, spec).encode(texts, special_tokens=special_tokens)
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
