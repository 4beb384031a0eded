"""Images to tensors, as transformers' PIL image processors make them, without torch or transformers."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.image_files import (
    AGAIN,
    DECODE_ERRORS,
    check_kind,
    check_size,
    file_content,
    open_content,
    shown,
)
from vlm_edge.processing.manifest import ImageProcessing, Transparency

Pixels = NDArray[np.uint8]
ImageSource = str | Path | bytes | io.BytesIO | Image.Image | Pixels

STRIP_PIXELS = 2**22
"""Pixels that are converted to RGB at a time: a larger image is never held as RGB twice."""
MAX_SCALED_PIXELS = 2**24
"""Largest area that an image is scaled to before its centre is cropped; beyond it, only the centre is scaled."""
_TURNING = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "transparency"}
"""Metadata in which a PIL image says that it is turned or transparent."""


def read_image(source: ImageSource, transparency: Transparency = "refuse") -> Pixels:
    """One RGB image, (height, width, 3) uint8, from a file, its bytes, a PIL image or an array.

    Greyscale, palette and alpha images are converted, and EXIF orientation is applied. ``transparency`` says what
    becomes of pixels that are not opaque, as the model's image processor has it (``ImageProcessing.transparency``).
    What has no one right conversion to 8-bit RGB is refused rather than guessed: 16-bit and float samples (Pillow
    would clip them to white), CMYK and Lab (their colours need a profile), more than one frame. An array is taken as
    RGB: (height, width, 3) or grey (height, width), uint8.

    Raises:
        VlmEdgeError: the image is missing, no regular file, empty, corrupt, incomplete, of no known format, over
            ``MAX_SIDE`` or ``MAX_PIXELS`` (by its header, before it is decoded), or of a kind that is refused; the
            message names the file.
    """
    if isinstance(source, np.ndarray):
        return _checked_array(source)
    if isinstance(source, Image.Image):
        name = shown(getattr(source, "filename", "") or "the image")
        check_size(source.size, name)
        if source.mode == "RGB" and not isinstance(source, ImageFile.ImageFile) and not _TURNING & source.info.keys():
            return np.asarray(source)  # in memory and already RGB: nothing to decode, to turn or to blend
        check_kind(source, name)
        return _upright_rgb(source, transparency, name)
    if isinstance(source, io.BytesIO):
        source = source.getvalue()
    if isinstance(source, bytes):
        name = "the image (bytes)"
        return _upright_rgb(open_content(source, name), transparency, name)
    if not isinstance(source, str | Path):
        raise VlmEdgeError(
            f"the image: a {type(source).__name__} is no image",
            "give a path, a file's bytes, a PIL image, or RGB uint8 (height, width, 3)",
        )
    path = Path(source)
    return _upright_rgb(open_content(file_content(path), shown(path)), transparency, shown(path))


def read_images(sources: Sequence[ImageSource], spec: ImageProcessing) -> list[Pixels]:
    """Images as the model of ``spec`` sees them, by :func:`read_image`."""
    return [read_image(source, spec.transparency) for source in sources]


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
    height, width = resize_target(image.shape[0], image.shape[1], spec)
    if height * width <= MAX_SCALED_PIXELS:
        image = resized(image, (height, width), spec.resample)
    else:
        image = _resized_center(image, (height, width), spec)
    return _center_cropped(image, spec.height, spec.width) if image.shape[:2] != (spec.height, spec.width) else image


def _resized_center(image: Pixels, size: tuple[int, int], spec: ImageProcessing) -> Pixels:
    """The middle of the image at ``size`` (height, width), no larger than the crop: a thin image's shorter side may
    be scaled so far up that the whole would take gigabytes. First the width, then the height, as PIL does."""
    height, width = (min(whole, crop) for whole, crop in zip(size, (spec.height, spec.width), strict=True))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    down, across, resample = image.shape[0] / size[0], image.shape[1] / size[1], Image.Resampling(spec.resample)
    columns = (left * across, 0, (left + width) * across, image.shape[0])
    narrow = Image.fromarray(image).resize((width, image.shape[0]), resample=resample, box=columns)
    rows = (0, top * down, width, (top + height) * down)
    return np.asarray(narrow.resize((width, height), resample=resample, box=rows))


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
    check_size((array.shape[1], array.shape[0]), "image array")
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array


def _upright_rgb(image: Image.Image, transparency: Transparency, name: str) -> Pixels:
    """A checked image as RGB, turned as its EXIF data say, a strip at a time."""
    try:
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        rows = max(1, STRIP_PIXELS // image.width)
        if image.height <= rows:
            return _turned(np.asarray(_rgb(image, transparency, name)), orientation)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            pixels[top : top + rows] = np.asarray(_rgb(strip, transparency, name))
        return _turned(pixels, orientation)
    except DECODE_ERRORS as error:
        raise VlmEdgeError(f"{name}: corrupt or cut short: {error}", AGAIN) from error


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """An array stored in one of EXIF's eight orientations, upright (a view)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


def _rgb(image: Image.Image, transparency: Transparency, name: str) -> Image.Image:
    """The image as RGB, transparent pixels as transformers' ``convert_to_rgb`` treats them."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    if transparency == "white":
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    elif transparency == "refuse" and image.getchannel("A").getextrema() != (255, 255):
        raise VlmEdgeError(
            f"{name}: it has transparent pixels, and the model's image processor has no rule for them",
            "put it on the background that the model was trained with, for example "
            "`magick IN -background white -flatten OUT.png`",
        )
    return image.convert("RGB")
