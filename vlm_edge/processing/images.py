"""Images to tensors, as transformers' PIL image processors make them, without torch or transformers."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import ImageProcessing

Pixels = NDArray[np.uint8]
ImageSource = str | Path | bytes | Image.Image | Pixels

MAX_SIDE = 16_384
"""Longest side that is decoded, in pixels."""
MAX_PIXELS = 89_478_485
"""Largest area that is decoded: Pillow's own bound, a quarter of a GiB of RGB."""

_CONVERTED_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"})
_DECODE_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's word for a broken file structure
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def read_image(source: ImageSource) -> Pixels:
    """One RGB image, (height, width, 3) uint8, from a file, its bytes, a PIL image or an array.

    Greyscale, palette and alpha images are converted (alpha is dropped, as transformers does), and EXIF orientation is
    applied. What has no one right conversion to 8-bit RGB is refused rather than guessed: 16-bit and float samples
    (Pillow would clip them to white), CMYK and Lab (their colours need a profile), more than one frame. An array is
    taken as RGB: (height, width, 3) or grey (height, width), uint8.

    Raises:
        VlmEdgeError: the image is missing, empty, corrupt, no image, over ``MAX_SIDE`` or ``MAX_PIXELS`` (told from
            the header, before decoding), or of a kind that is refused; the message names the file.
    """
    if isinstance(source, np.ndarray):
        return _checked_array(source)
    if isinstance(source, Image.Image):
        if source.mode == "RGB" and not isinstance(source, ImageFile.ImageFile) and "exif" not in source.info:
            _check_size(source, "the image")  # in memory and already RGB: nothing to decode or turn
            return np.asarray(source)
        return _decoded(source, str(getattr(source, "filename", "") or "the image"))
    if isinstance(source, bytes):
        return _opened(source, "the image (bytes)")
    path = Path(source)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise VlmEdgeError(f"{path}: no such image", "check the path") from error
    except OSError as error:
        raise VlmEdgeError(f"{path}: can't be read as an image: {error.strerror}", "give an image file") from error
    return _opened(content, str(path))


def preprocess(images: Sequence[Pixels], spec: ImageProcessing) -> NDArray[np.float32]:
    """RGB images, each (height, width, 3) uint8 -> ``pixel_values`` (images, 3, spec.height, spec.width) float32.

    Bit-equal to transformers' ``PilBackend``: after the uint8 resize and crop, a pixel has 256 values, so rescale and
    normalize are one table look-up for each channel, in the same float64 and float32 steps.
    """
    out = np.empty((len(images), 3, spec.height, spec.width), np.float32)
    table = _normalize_table(spec.rescale_factor, spec.mean, spec.std)
    for image, planes in zip(images, out, strict=True):
        sized = image if image.shape[:2] == (spec.height, spec.width) else _resized(image, spec)
        for channel in range(3):
            # mode="clip" never clips here (256 entries, uint8 index); it spares take() a copy of `out`
            table[channel].take(sized[:, :, channel], out=planes[2 - channel if spec.bgr else channel], mode="clip")
    return out


@lru_cache(maxsize=64)
def _normalize_table(
    rescale_factor: float, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """(3, 256) float32: what each uint8 value becomes in each channel."""
    rescaled = (np.arange(256, dtype=np.float64) * rescale_factor).astype(np.float32)
    return (rescaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def _resized(image: Pixels, spec: ImageProcessing) -> Pixels:
    """Resize with PIL's filter ``spec.resample``, then crop the centre (padding with zeros what is too small)."""
    image = resized(image, resize_target(image.shape[0], image.shape[1], spec), spec.resample)
    return _center_cropped(image, spec.height, spec.width) if image.shape[:2] != (spec.height, spec.width) else image


def resize_target(height: int, width: int, spec: ImageProcessing) -> tuple[int, int]:
    """Height and width before the crop, of an image of this height and width."""
    if spec.shortest_edge is None:
        return spec.resize_to or (spec.height, spec.width)
    if spec.multiple_of is None:
        if width <= height:
            return int(spec.shortest_edge * height / width), spec.shortest_edge
        return spec.shortest_edge, int(spec.shortest_edge * width / height)
    # transformers' get_resize_output_image_size of BridgeTower and ViLT, in its order of operations
    scale = spec.shortest_edge / min(height, width)
    sides = [spec.shortest_edge, scale * width] if height < width else [scale * height, spec.shortest_edge]
    if spec.longest_edge is not None and max(sides) > spec.longest_edge:
        scale = spec.longest_edge / max(sides)
        sides = [scale * side for side in sides]
    # (which fails where a narrow image's shorter side comes to 0: here it is one multiple)
    rows, columns = (max(int(side + 0.5) // spec.multiple_of, 1) * spec.multiple_of for side in sides)
    return rows, columns


def resized(image: Pixels, size: tuple[int, int], resample: int) -> Pixels:
    """The image at ``size`` (height, width), with PIL's filter ``resample``."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), resample=Image.Resampling(resample)))


def _center_cropped(image: Pixels, height: int, width: int) -> Pixels:
    """The (height, width) window in the middle, offsets rounded down as transformers' ``center_crop`` does."""
    pad_y, pad_x = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if pad_y or pad_x:
        before_y, before_x = math.ceil(pad_y / 2), math.ceil(pad_x / 2)
        image = np.pad(image, ((before_y, pad_y - before_y), (before_x, pad_x - before_x), (0, 0)))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _checked_array(array: NDArray[Any]) -> Pixels:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise VlmEdgeError(
            f"image array: {array.dtype} {array.shape} is not uint8 (height, width, 3)",
            "give RGB bytes, channels last, values 0 to 255",
        )
    if 0 in array.shape:
        raise VlmEdgeError(f"image array: {array.shape} holds no pixel", "give at least one pixel")
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array


def _opened(content: bytes, name: str) -> Pixels:
    if not content:
        raise VlmEdgeError(f"{name}: the file is empty (0 bytes)", "copy or download it again")
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise VlmEdgeError(
            f"{name}: not an image, or its header is corrupt", "give a PNG, JPEG, WebP, BMP, GIF or TIFF image"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VlmEdgeError(f"{name}: {_too_large()}: {error}", "scale it down first") from error
    except _DECODE_ERRORS as error:
        raise VlmEdgeError(f"{name}: its header is corrupt: {error}", "copy or download it again") from error
    with image:
        return _decoded(image, name)


def _decoded(image: Image.Image, name: str) -> Pixels:
    _check_size(image, name)
    _check_kind(image, name)
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")
        return np.asarray(upright.convert("RGB"))
    except _DECODE_ERRORS as error:
        raise VlmEdgeError(f"{name}: corrupt or cut short: {error}", "copy or download it again") from error


def _too_large() -> str:
    return f"over {MAX_SIDE:,} pixels wide or high, or over {MAX_PIXELS:,} pixels in all"


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise VlmEdgeError(f"{name}: {width} x {height} is {_too_large()}; it was not decoded", "scale it down first")
    if not width or not height:
        raise VlmEdgeError(f"{name}: {width} x {height} holds no pixel", "give at least one pixel")


def _check_kind(image: Image.Image, name: str) -> None:
    """Refuse what can't be converted to 8-bit RGB without guessing; the decoder's settings tell 16-bit colour."""
    settings = repr([tile[3] for tile in getattr(image, "tile", ())])
    if image.mode.startswith(("I", "F")) or ";16" in settings:
        bits = "32-bit" if image.mode in ("I", "F") and ";16" not in settings else "16-bit"
        raise VlmEdgeError(
            f"{name}: {bits} samples (mode {image.mode}); 8-bit images are taken",
            "scale it to 8 bits with the range that the model was trained on, then save it as PNG",
        )
    if image.mode not in _CONVERTED_MODES:
        raise VlmEdgeError(
            f"{name}: mode {image.mode}; RGB, greyscale, palette and alpha images are taken",
            "convert it to sRGB with its colour profile (for example `magick IN -profile sRGB.icc OUT.png`)",
        )
    # a phone's MPO is a photograph with a second picture behind it, no animation
    if image.format != "MPO" and (frames := _frame_count(image, name)) > 1:
        raise VlmEdgeError(f"{name}: animated or paged, {frames} frames; one is taken", "save the frame that you mean")


def _frame_count(image: Image.Image, name: str) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except _DECODE_ERRORS as error:
        raise VlmEdgeError(f"{name}: corrupt or cut short: {error}", "copy or download it again") from error
