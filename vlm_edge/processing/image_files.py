"""Open an image file from anywhere: its format, size and completeness are checked."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from vlm_edge.errors import VlmEdgeError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are opened, by Pillow's names. MPO, a phone's JPEG with a second picture behind it, opens as JPEG."""
MAX_SIDE = 16_384
"""Longest side that is decoded, in pixels."""
MAX_PIXELS = 89_478_485
"""Largest area that is decoded: Pillow's own bound, a quarter of a GiB of RGB."""
MAX_BYTES = 2**28
"""Largest file that is read: what :data:`MAX_PIXELS` of uncompressed RGB take."""
DECODE_ERRORS = (
    OSError,
    SyntaxError,  # Pillow's word for a broken file structure
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
AGAIN = "copy or download it again"

_CONVERTED_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"})
_GREY = (128, (128, 128, 128))
"""The value that libjpeg fills up with where a JPEG's data ends early."""
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_FILLER = bytes(value % 251 for value in range(7, 4096 * 89, 89))
"""Entropy-coded data of no meaning, without a marker in it."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row and their steps in each pass of an interlaced PNG (its specification, section 8.2)."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel by PNG colour type."""


def file_content(path: Path) -> bytes:
    """All bytes of an image file.

    Raises:
        VlmEdgeError: there is none, it is no regular file (a pipe, a device: refused before it is read), it is empty
            or over :data:`MAX_BYTES`, or the system refuses the path.
    """
    name = shown(path)
    hint = "give an image file"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise VlmEdgeError(f"{name}: can't be read as an image: not a regular file", hint)
            if status.st_size > MAX_BYTES:
                size = f"{status.st_size:,} bytes; at most {MAX_BYTES:,} are read"
                raise VlmEdgeError(f"{name}: can't be read as an image: {size}", "scale it down first")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise VlmEdgeError(f"{name}: no such image", "check the path") from error
    except OSError as error:
        raise VlmEdgeError(f"{name}: can't be read as an image: {error.strerror}", hint) from error
    except ValueError as error:  # a NUL or a lone surrogate in the path
        raise VlmEdgeError(f"{name}: can't be read as an image: no path of a file", hint) from error


def shown(path: object) -> str:
    """A path as a message can print it: control characters and lone surrogates escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def open_content(content: bytes, name: str) -> Image.Image:
    """The image of a file's bytes, decoded, its size, kind and completeness checked; ``name`` is for messages.

    Raises:
        VlmEdgeError: as :func:`vlm_edge.processing.images.read_image`.
    """
    if not content:
        raise VlmEdgeError(f"{name}: the file is empty (0 bytes)", AGAIN)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise VlmEdgeError(
            f"{name}: not an image, or its header is corrupt", "give a PNG, JPEG, WebP, BMP, GIF or TIFF image"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VlmEdgeError(f"{name}: {_too_large()}: {error}", "scale it down first") from error
    except DECODE_ERRORS as error:
        raise VlmEdgeError(f"{name}: its header is corrupt: {error}", AGAIN) from error
    check_size(image.size, name)
    check_kind(image, name)
    jpeg = image.format in ("JPEG", "MPO")
    last_scan = _last_scan(content) if jpeg else 0
    if last_scan is None or (jpeg and len(content) * 8 < _blocks(image)):
        raise _ends_early(name)
    try:
        image.load()
        complete = not _may_end_early(image) or (
            _complete_jpeg(content, image, last_scan) if jpeg else image.format == "PNG" and _complete_png(content)
        )
    except DECODE_ERRORS as error:
        raise VlmEdgeError(f"{name}: corrupt or cut short: {error}", AGAIN) from error
    if not complete:
        raise _ends_early(name)
    return image


def check_size(size: tuple[int, int], name: str) -> None:
    """Refuse a (width, height) that is too large to decode, or empty."""
    width, height = size
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise VlmEdgeError(f"{name}: {width} x {height} is {_too_large()}; it was not decoded", "scale it down first")
    if not width or not height:
        raise VlmEdgeError(f"{name}: {width} x {height} holds no pixel", "give at least one pixel")


def check_kind(image: Image.Image, name: str) -> None:
    """Refuse what can't be converted to 8-bit RGB without guessing; 16-bit colour shows in the decoder's settings."""
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
    if isinstance(image, ImageFile.ImageFile) and image.format not in (*FORMATS, "MPO"):
        raise VlmEdgeError(
            f"{name}: {image.format} is not opened", "save it as a PNG, JPEG, WebP, BMP, GIF or TIFF image"
        )
    # a phone's MPO is a photograph with a second picture behind it, no animation
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise VlmEdgeError(f"{name}: animated or paged; one frame is taken", "save the frame that you mean")


def _too_large() -> str:
    return f"over {MAX_SIDE:,} pixels wide or high, or over {MAX_PIXELS:,} pixels in all"


def _ends_early(name: str) -> VlmEdgeError:
    return VlmEdgeError(f"{name}: corrupt or cut short: its data ends before its last pixel", AGAIN)


def _blocks(image: Image.Image) -> int:
    """Blocks of 8 x 8 pixels. Huffman codes take at least one bit for each of them."""
    return math.ceil(image.width / 8) * math.ceil(image.height / 8)


def _may_end_early(image: Image.Image) -> bool:
    """True if the last pixels look as a decoder leaves them where data is missing; honest pixels may, too."""
    if image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg":
        return image.getpixel((image.width - 1, image.height - 1)) in _GREY
    if image.format == "PNG":  # the last odd row: it is among the last in an interlaced file too
        row = max(image.height - 1 - image.height % 2, 0)
        return image.crop((0, row, image.width, row + 1)).getbbox(alpha_only=False) is None
    return False


def _last_scan(content: bytes) -> int | None:
    """Offset of the scan that completes all coefficients of all components of a JPEG; None if some are missing."""
    position, missing = 0, None
    while (found := _MARKER.search(content, position)) is not None:
        marker, position = content[found.end() - 1], found.end()
        if marker in (0x01, 0xD8):
            continue
        if marker == 0xD9 or position + 2 > len(content):
            return None
        body = content[position + 2 : position + int.from_bytes(content[position : position + 2], "big")]
        position += 2 + len(body)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) > 6:
            missing = {component: set(range(64)) for component in body[6::3]}
        elif marker == 0xDA and missing is not None and len(body) >= 4:
            components, (first, last, precision) = body[1:-3:2], body[-3:]
            for component in components if precision & 15 == 0 else b"":
                missing.get(component, set()).difference_update(range(first, last + 1))
            if not any(missing.values()):
                return position
    return None


def _complete_jpeg(content: bytes, image: Image.Image, last_scan: int) -> bool:
    """True if more data before a JPEG's end change no pixel, since a complete JPEG does not read them."""
    end = content.find(b"\xff\xd9", last_scan)
    if end < 0:
        return False
    filled = Image.open(io.BytesIO(content[:end] + _FILLER + content[end:]), formats=FORMATS)
    filled.load()
    strips = ((0, top, image.width, min(top + 256, image.height)) for top in range(0, image.height, 256))
    return all(image.crop(strip).tobytes() == filled.crop(strip).tobytes() for strip in strips)


def _complete_png(content: bytes) -> bool:
    """True if a PNG's compressed data unpack to as many bytes as its header asks for."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    missing = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            missing += rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8)
    unpacker, position = zlib.decompressobj(), 8
    while missing > 0 and position + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8])
        waiting = content[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        while waiting and missing > 0 and not unpacker.eof:
            missing -= len(unpacker.decompress(waiting, 2**20))
            waiting = unpacker.unconsumed_tail
        position += 12 + length
    return missing <= 0
