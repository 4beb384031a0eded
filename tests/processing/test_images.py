"""read_image and preprocess against PIL and transformers' PIL processors."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing import images
from vlm_edge.processing.image_files import MAX_BYTES, MAX_SIDE
from vlm_edge.processing.images import preprocess, read_image
from vlm_edge.processing.manifest import ImageProcessing

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def random_rgb(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours, so that resampling filters differ by little where they should agree."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


def png(width: int, height: int, bit_depth: int = 8, rows: bytes = b"", interlaced: bool = False) -> bytes:
    """A hand-written RGB PNG, for headers that PIL can't be asked to write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, 2, 0, 0, interlaced)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class TestReadImage:
    def test_file_bytes_pil_and_array_agree(self, tmp_path: Path) -> None:
        pixels = random_rgb(7, 9)
        content = encoded(Image.fromarray(pixels))
        (tmp_path / "a.png").write_bytes(content)
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), content, Image.fromarray(pixels), pixels):
            read = read_image(source)
            assert read.dtype == np.uint8
            np.testing.assert_array_equal(read, pixels)

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
    def test_other_8_bit_modes_become_rgb(self, mode: str) -> None:
        image = Image.fromarray(random_rgb(8, 8)).convert(mode)
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(read_image(encoded(image)), expected)
        np.testing.assert_array_equal(read_image(image), expected)

    @pytest.mark.parametrize(
        "source", [encoded, lambda image, **options: Image.open(io.BytesIO(encoded(image, **options)))]
    )
    def test_transparency_as_the_processor_has_it(self, source: Callable[..., Any]) -> None:
        rgba = np.array([[[200, 100, 0, 0], [200, 100, 0, 128], [200, 100, 0, 255]]], np.uint8)
        image = source(Image.fromarray(rgba))
        assert read_image(image, "white")[0].tolist() == [[255, 255, 255], [227, 177, 127], [200, 100, 0]]
        assert read_image(image, "drop")[0].tolist() == [[200, 100, 0]] * 3
        with pytest.raises(VlmEdgeError, match="transparent pixels"):
            read_image(image)

    @pytest.mark.parametrize(
        ("image", "options"),
        [
            (Image.fromarray(random_rgb(8, 8)).quantize(4), {"transparency": b"\x00\x80\xff\xff"}),
            (Image.fromarray(random_rgb(8, 8)).quantize(4), {"transparency": 2, "format": "GIF"}),
            (Image.fromarray(random_rgb(8, 8) // 64 * 64), {"transparency": (64, 64, 64)}),
            (Image.fromarray(random_rgb(8, 8)[:, :, 0] // 64 * 64), {"transparency": 64}),
            (Image.fromarray(random_rgb(8, 8)[:, :, :2].copy(), "LA"), {}),
            (
                Image.fromarray(np.dstack([random_rgb(8, 8), random_rgb(8, 8, 1)[:, :, 0]])),
                {"format": "WEBP", "lossless": True},
            ),
        ],
        ids=["palette", "GIF", "colour", "grey", "LA", "WebP"],
    )
    def test_every_kind_of_transparency_equals_transformers(self, image: Image.Image, options: dict[str, Any]) -> None:
        transforms = pytest.importorskip("transformers.image_transforms")
        content = encoded(image, **options)
        opened = Image.open(io.BytesIO(content))
        expected = transforms.convert_to_rgb(opened, return_numpy=True)
        assert (expected != np.asarray(opened.convert("RGBA").convert("RGB"))).any()
        np.testing.assert_array_equal(read_image(content, "white"), expected)

    def test_opaque_alpha_is_read_whatever_the_processor_does(self) -> None:
        image = Image.fromarray(random_rgb(8, 8)).convert("RGBA")
        for transparency in ("white", "drop", "refuse"):
            np.testing.assert_array_equal(read_image(encoded(image), transparency), random_rgb(8, 8))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_strips_are_the_whole_image(self, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        alpha = random_rgb(30, 20, 1)[:, :, :1]
        content = encoded(Image.fromarray(np.concatenate([random_rgb(30, 20), alpha], axis=2)), exif=exif)
        whole = read_image(content, "white")
        monkeypatch.setattr(images, "STRIP_PIXELS", 20 * 7)
        np.testing.assert_array_equal(read_image(content, "white"), whole)

    def test_a_buffer_is_read_and_other_things_are_refused(self) -> None:
        content = encoded(Image.fromarray(random_rgb(8, 8)))
        np.testing.assert_array_equal(read_image(io.BytesIO(content)), random_rgb(8, 8))
        with pytest.raises(VlmEdgeError, match="the image: a list is no image"):
            read_image([1, 2])  # type: ignore[arg-type]

    def test_grey_array(self) -> None:
        grey = random_rgb(5, 6)[:, :, 0]
        np.testing.assert_array_equal(read_image(grey), np.stack([grey] * 3, axis=2))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, orientation: int) -> None:
        pixels = random_rgb(6, 4)
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright = {
            1: pixels,
            2: pixels[:, ::-1],
            3: pixels[::-1, ::-1],
            4: pixels[::-1],
            5: pixels.transpose(1, 0, 2),
            6: pixels[::-1].transpose(1, 0, 2),
            7: pixels[::-1, ::-1].transpose(1, 0, 2),
            8: pixels[:, ::-1].transpose(1, 0, 2),
        }
        content = encoded(Image.fromarray(pixels), exif=exif)
        np.testing.assert_array_equal(read_image(content), upright[orientation])
        opened = Image.open(io.BytesIO(content))
        opened.load()
        np.testing.assert_array_equal(read_image(opened.copy()), upright[orientation])

    def test_phone_photo_with_a_second_picture_is_read(self) -> None:
        first, second = Image.fromarray(random_rgb(8, 8)), Image.fromarray(random_rgb(8, 8, seed=1))
        content = encoded(first, format="MPO", save_all=True, append_images=[second])
        np.testing.assert_array_equal(read_image(content), read_image(encoded(first, format="JPEG")))


RGB = random_rgb(32, 32)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
END = b"\xff\xd9"
"""A JPEG's end marker: a decoder takes what is missing before it for grey."""


def claiming(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


class TestCompleteImages:
    """Honest pixels that look like missing ones."""

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}])
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_a_jpeg_that_ends_in_grey(self, mode: str, options: dict[str, Any]) -> None:
        pixels = np.array(PHOTO)
        pixels[32:] = 128
        content = encoded(Image.fromarray(pixels).convert(mode), format="JPEG", **options)
        read = read_image(content)
        assert read[-1, -1].tolist() == [128] * 3
        np.testing.assert_array_equal(read, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))

    @pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA"])
    def test_a_png_that_ends_in_black(self, mode: str) -> None:
        image = Image.fromarray(np.zeros((9, 13, 3), np.uint8)).convert(mode)
        assert read_image(encoded(image), "drop").shape == (9, 13, 3)

    @pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 8), (9, 17)])
    def test_an_interlaced_png(self, size: tuple[int, int]) -> None:
        width, height = size
        passes = [
            (-(-(width - x) // dx), -(-(height - y) // dy))
            for x, y, dx, dy in [
                (0, 0, 8, 8),
                (4, 0, 8, 8),
                (0, 4, 4, 8),
                (2, 0, 4, 4),
                (0, 2, 2, 4),
                (1, 0, 2, 2),
                (0, 1, 1, 2),
            ]
        ]
        rows = b"".join(bytes(1 + 3 * columns) * lines for columns, lines in passes if columns > 0 and lines > 0)
        np.testing.assert_array_equal(read_image(png(*size, rows=rows, interlaced=True)), np.zeros((height, width, 3)))
        with pytest.raises(VlmEdgeError, match="cut short"):
            read_image(png(*size, rows=rows[:-1], interlaced=True))

    def test_a_jpeg_of_one_colour_takes_more_than_the_least_data(self) -> None:
        content = encoded(Image.new("L", (2000, 2000), 128), format="JPEG", optimize=True, progressive=True)
        assert read_image(content).shape == (2000, 2000, 3)


class TestRefusedImages:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "empty (0 bytes)"),
            (b"not an image at all", "not an image"),
            (encoded(Image.fromarray(RGB))[:-40], "corrupt or cut short"),
            (encoded(Image.fromarray(RGB), format="JPEG")[:700], "corrupt or cut short"),
            (encoded(Image.fromarray(RGB[:, :, 0].astype(np.uint16))), "16-bit"),
            (encoded(Image.fromarray(RGB[:, :, 0].astype(np.int32)), format="TIFF"), "32-bit"),
            (encoded(Image.fromarray(RGB[:, :, 0].astype(np.float32)), format="TIFF"), "32-bit"),
            (png(2, 2, 16, b"\x00" + bytes(12) + b"\x00" + bytes(12)), "16-bit"),
            (encoded(Image.fromarray(RGB).convert("CMYK"), format="JPEG"), "mode CMYK"),
            (
                encoded(Image.fromarray(RGB), format="GIF", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
                "animated or paged",
            ),
            (
                encoded(Image.fromarray(RGB), format="TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
                "animated or paged",
            ),
            (png(20_000, 4), "20000 x 4"),
            (png(4, MAX_SIDE + 1), "4 x 16385"),
            (png(16_000, 16_000), "over 16,384 pixels"),
            (png(9_500, 9_500), "over 16,384 pixels"),
            (png(4, 4, rows=bytes(13)), "cut short: its data ends"),
            (encoded(PHOTO, format="JPEG")[:-900] + END, "cut short: its data ends"),
            (encoded(PHOTO.convert("L"), format="JPEG")[:-900] + END, "cut short: its data ends"),
            (encoded(PHOTO, format="JPEG", progressive=True)[:-2000] + END, "cut short: its data ends"),
            (encoded(PHOTO, format="JPEG", restart_marker_rows=1)[:-900] + END, "cut short: its data ends"),
            (claiming(encoded(Image.fromarray(RGB), format="JPEG"), 9_400, 9_400), "cut short: its data ends"),
            (encoded(Image.fromarray(RGB), format="PPM"), "not an image"),
            (encoded(Image.fromarray(RGB), format="EPS"), "not an image"),
            (encoded(Image.fromarray(RGB), format="ICNS"), "not an image"),
            (encoded(Image.fromarray(RGB), format="DDS"), "not an image"),
        ],
    )
    def test_message_names_the_file_and_the_next_step(self, tmp_path: Path, content: bytes, words: str) -> None:
        path = tmp_path / "broken.png"
        path.write_bytes(content)
        with pytest.raises(VlmEdgeError) as caught:
            read_image(path)
        assert caught.value.message.startswith(str(path))
        assert words in caught.value.message
        assert caught.value.hint

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(VlmEdgeError, match=r"none\.png: no such image"):
            read_image(tmp_path / "none.png")
        with pytest.raises(VlmEdgeError, match="can't be read as an image"):
            read_image(tmp_path)

    @pytest.mark.parametrize("name", ["\0.png", "\ud800.png", "a" * 300 + ".png", "line\nbreak.png"])
    def test_a_path_that_no_file_can_have(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(VlmEdgeError) as caught:
            read_image(f"{tmp_path}/{name}")
        assert str(caught.value).isprintable() or str(caught.value).count("\n") == 1
        caught.value.message.encode()

    def test_only_regular_files_are_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        for path in (tmp_path / "pipe.png", Path("/dev/zero")):
            with pytest.raises(VlmEdgeError, match="not a regular file"):
                read_image(path)
        with pytest.raises(VlmEdgeError, match="empty"):
            read_image("/proc/self/maps")
        huge = tmp_path / "huge.bmp"
        huge.touch()
        os.truncate(huge, MAX_BYTES + 1)
        with pytest.raises(VlmEdgeError, match="268,435,457 bytes"):
            read_image(huge)

    def test_only_the_second_of_many_pages_is_looked_for(self) -> None:
        """20,000 directories take half a minute to count."""
        first = encoded(Image.fromarray(RGB), format="TIFF", save_all=True, append_images=[Image.fromarray(RGB)])
        loaded = []
        load = TiffImagePlugin.ImageFileDirectory_v2.load
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                TiffImagePlugin.ImageFileDirectory_v2, "load", lambda self, file: loaded.append(1) or load(self, file)
            )
            with pytest.raises(VlmEdgeError, match="animated or paged"):
                read_image(first)
        assert len(loaded) <= 2

    @pytest.mark.parametrize(
        "array", [np.zeros((1, MAX_SIDE + 1, 3), np.uint8), np.zeros((10_000, 10_000), np.bool_).view(np.uint8)]
    )
    def test_arrays_obey_the_same_limits(self, array: np.ndarray) -> None:
        with pytest.raises(VlmEdgeError, match=r"image array: .* is over"):
            read_image(array)

    def test_a_pil_image_of_another_format(self) -> None:
        opened = Image.open(io.BytesIO(encoded(Image.fromarray(RGB), format="EPS")))
        with pytest.raises(VlmEdgeError, match="EPS is not opened"):
            read_image(opened)

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((4, 4, 3), np.float32),
            np.zeros((3, 4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((0, 4, 3), np.uint8),
        ],
    )
    def test_array_of_another_layout(self, array: np.ndarray) -> None:
        with pytest.raises(VlmEdgeError, match="image array"):
            read_image(array)

    @settings(max_examples=120, deadline=None)
    @given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    def test_corrupt_bytes_read_or_end_in_one_clear_error(self, data: st.DataObject, kind: str) -> None:
        content = bytearray(encoded(Image.fromarray(random_rgb(12, 10)), format=kind))
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        keep = data.draw(st.integers(0, len(content)))
        warnings.simplefilter("ignore")  # Pillow's own remarks on broken metadata
        refused = None
        try:
            assert read_image(bytes(content[:keep])).shape[2] == 3
        except VlmEdgeError as error:
            refused = error
        assert refused is None or refused.hint


SIZES = [(64, 64), (48, 80), (80, 48), (33, 31), (64, 65), (200, 20)]


class TestPreprocess:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("resample", [2, 3])
    def test_equals_transformers_blip(self, size: tuple[int, int], resample: int) -> None:
        blip = pytest.importorskip("transformers.models.blip.image_processing_pil_blip")
        processor = blip.BlipImageProcessorPil(size={"height": 64, "width": 64}, resample=resample)
        spec = ImageProcessing(height=64, width=64, resample=resample, mean=CLIP_MEAN, std=CLIP_STD)
        image = random_rgb(*size)
        expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(preprocess([image], spec), expected)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("crop", [(64, 64), (60, 51), (70, 66)])
    def test_equals_transformers_clip(self, size: tuple[int, int], crop: tuple[int, int]) -> None:
        clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
        height, width = crop
        processor = clip.CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": height, "width": width})
        spec = ImageProcessing(
            height=height, width=width, shortest_edge=64, center_crop=True, mean=CLIP_MEAN, std=CLIP_STD
        )
        image = random_rgb(*size)
        expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(preprocess([image], spec), expected)

    def test_batch_is_contiguous_float32_and_row_by_row(self) -> None:
        spec = ImageProcessing(height=16, width=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        images = [random_rgb(16, 24), random_rgb(40, 30, seed=1)]
        batch = preprocess(images, spec)
        assert batch.dtype == np.float32
        assert batch.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(batch, np.concatenate([preprocess([image], spec) for image in images]))
        by_hand = (images[0].transpose(2, 0, 1) / 255 - np.array(spec.mean)[:, None, None]) / np.array(spec.std)[
            :, None, None
        ]
        np.testing.assert_allclose(batch[0], by_hand, atol=1e-6)

    @pytest.mark.parametrize("size", [(3, 700), (700, 3), (1, 800)])
    def test_a_thin_image_is_scaled_no_further_than_its_crop(
        self, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
        processor = clip.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 30})
        spec = ImageProcessing(height=32, width=30, shortest_edge=32, center_crop=True, mean=CLIP_MEAN, std=CLIP_STD)
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values"]
        monkeypatch.setattr(images, "MAX_SCALED_PIXELS", 32 * 32)
        np.testing.assert_allclose(preprocess([image], spec), expected, atol=1 / 255 / min(CLIP_STD) + 1e-6)

    def test_the_thinnest_image_takes_no_gigabytes(self) -> None:
        spec = ImageProcessing(height=224, width=224, shortest_edge=224, center_crop=True)
        image = np.zeros((1, MAX_SIDE, 3), np.uint8)
        image[:, MAX_SIDE // 2 :] = 255
        pixels = preprocess([image], spec)
        assert pixels[0, :, :, 0].max() == 0
        assert pixels[0, :, :, -1].min() == 1

    def test_no_image_gives_an_empty_batch(self) -> None:
        assert preprocess([], ImageProcessing(height=4, width=5)).shape == (0, 3, 4, 5)
