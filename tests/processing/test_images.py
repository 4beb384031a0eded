"""read_image and preprocess against PIL and transformers' PIL processors."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import MAX_SIDE, preprocess, read_image
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


def png(width: int, height: int, bit_depth: int = 8, rows: bytes = b"") -> bytes:
    """A hand-written RGB PNG, for headers that PIL can't be asked to write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, 2, 0, 0, 0)
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

    def test_palette_with_transparency_keeps_its_colours_and_gives_no_warning(self) -> None:
        image = Image.fromarray(random_rgb(8, 8)).quantize(4)
        content = encoded(image, transparency=b"\x00\x80\xff\xff")
        np.testing.assert_array_equal(read_image(content), np.asarray(image.convert("RGB")))

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
                "2 frames",
            ),
            (
                encoded(Image.fromarray(RGB), format="TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
                "2 frames",
            ),
            (png(20_000, 4), "20000 x 4"),
            (png(4, MAX_SIDE + 1), "4 x 16385"),
            (png(16_000, 16_000), "over 16,384 pixels"),
            (png(9_500, 9_500), "over 16,384 pixels"),
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

    def test_no_image_gives_an_empty_batch(self) -> None:
        assert preprocess([], ImageProcessing(height=4, width=5)).shape == (0, 3, 4, 5)
