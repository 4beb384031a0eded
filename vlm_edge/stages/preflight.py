"""Preflight: is what will be judged the user's model? Some of the user's own images and texts through transformers and
through the runtime, before anything is measured.

The export compares random images; a fault that these do not show (transparency, palettes, a processor of another class)
would be in the baseline and in every variant alike, and no verdict could tell.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_edge.core.stage import Progress, TaskSpec
from vlm_edge.core.workbench import package_version
from vlm_edge.data import load_dataset
from vlm_edge.errors import VlmEdgeError

if TYPE_CHECKING:
    from vlm_edge.data.dataset import Dataset, Sample
    from vlm_edge.families.base import Family
    from vlm_edge.processing.images import Pixels
    from vlm_edge.processing.manifest import ImageProcessing

VERSION = "1"
"""Part of the key under which a run keeps that it passed."""
LOOKED_AT = 200
"""Images of the test split whose headers are read to find the kinds (format, mode, orientation) that are in it."""
IMAGES, OF_A_KIND = 8, 2
"""Images that are compared in all, and of one kind while there are others."""
ANSWERS = 4
"""Questions that are answered, or images that are embedded."""
MAX_RELATIVE_ERROR = 1e-2
"""Largest difference of an embedding or a logit, relative to the largest: a few times what one component may have."""


@dataclass(frozen=True)
class Preflight:
    """The check as core calls it."""

    @property
    def version(self) -> str:
        """Of this module and of what it compares with."""
        found = (f"{name} {package_version(name)}" for name in ("torch", "transformers", "pillow"))
        return f"preflight {VERSION}, {', '.join(found)}"

    def __call__(
        self, checkpoint: Path, engine: Path, task: TaskSpec, progress: Progress, *, trust_remote_code: bool = False
    ) -> dict[str, Any]:
        """Images, then answers; what was compared, as JSON.

        Raises:
            VlmEdgeError: as :func:`check_images` and :func:`check_answers`.
        """
        from vlm_edge.processing.manifest import read_manifest

        with progress.bar("preflight", 2) as ticker:
            facts: dict[str, Any] = {"images": check_images(checkpoint, task, read_manifest(engine).image)}
            ticker.advance(note="answers")
            facts["answers"] = check_answers(checkpoint, engine, task, trust_remote_code=trust_remote_code)
            ticker.advance()
        return facts


def check_images(checkpoint: Path, task: TaskSpec, exported: ImageProcessing | None = None) -> dict[str, Any]:
    """Some of the task's images through transformers' own processor and through ours, as ``exported`` (default: as the
    export of ``checkpoint`` would write it).

    Both see a photo upright, as its EXIF data say. What the processor refuses (a greyscale image without
    ``do_convert_rgb``) it sees as RGB, as its user must have given it. Images that the runtime refuses are no
    difference: whoever needs them is told why.

    Returns:
        ``compared``, ``refused`` and ``max_steps``, the largest difference in steps of an 8-bit pixel.

    Raises:
        VlmEdgeError: an image's pixels differ by more than one step; the message names it and both classes.
    """
    from vlm_edge.checkpoints.config import read_config
    from vlm_edge.checkpoints.processors import MOST_STEPS
    from vlm_edge.families.loading import find_family
    from vlm_edge.processing.images import read_image

    family = find_family(checkpoint, read_config(checkpoint))
    spec = exported or family.image_processing(checkpoint)
    processor = _original_processor(checkpoint)
    facts: dict[str, Any] = {"compared": 0, "refused": 0, "max_steps": 0.0}
    if processor is None:
        return facts | {"reason": "transformers knows no image processor of this folder"}
    for sample in _chosen(load_dataset(task.data, "test")):
        try:
            pixels = read_image(sample.image, spec.transparency)
        except VlmEdgeError:
            facts["refused"] += 1
            continue
        steps = _difference(sample.image, pixels, family, processor, spec)
        if steps > MOST_STEPS:
            raise VlmEdgeError(
                f"{sample.image}: transformers' {type(processor).__name__} and what was exported of "
                f"{spec.processor} make different pixels of it: up to {min(steps, 255):.0f} of 255 apart, so the "
                "baseline would not be your model",
                "please report it with the image's kind (`file IMAGE`) and preprocessor_config.json",
            )
        facts["compared"] += 1
        facts["max_steps"] = max(facts["max_steps"], round(steps, 3))
    return facts


def check_answers(
    checkpoint: Path, engine: Path, task: TaskSpec, *, trust_remote_code: bool = False
) -> dict[str, float]:
    """Some of the task's samples through transformers' model and through the baseline's engine.

    Returns:
        What was compared, as the export stage counts it.

    Raises:
        VlmEdgeError: an answer, an embedding or a logit differs.
    """
    from vlm_edge.families.loading import load_checkpoint
    from vlm_edge.families.parts.language_family import fused_attention
    from vlm_edge.processing.images import read_images
    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.processing.text import Tokenizer
    from vlm_edge.runtime.pipeline import load_engines
    from vlm_edge.stages.export_check import return_freed_memory
    from vlm_edge.stages.export_composed import Samples, check_pipeline, torch_says

    manifest = read_manifest(engine)
    dataset = load_dataset(task.data, "test")
    images: list[Pixels] = []
    texts: list[str] = []
    for sample in _chosen(dataset):
        try:
            images += read_images([sample.image], manifest.image)
        except VlmEdgeError:
            continue
        texts.append(sample.text or " ".join(sample.answers[:1]))
        if len(images) == ANSWERS:
            break
    if not images:
        return {"compared": 0}
    tokenizer = Tokenizer(engine, manifest.text) if manifest.text is not None else None
    samples = Samples(images, texts, tokenizer)
    loaded = load_checkpoint(checkpoint, trust_remote_code=trust_remote_code)
    with fused_attention(loaded.model.get_submodule(loaded.family.vision_tower_path)):
        wanted = torch_says(loaded, manifest, samples)
    for tensor in (*loaded.model.parameters(), *loaded.model.buffers()):
        tensor.data = tensor.data.new_empty(0)
    return_freed_memory()
    try:
        return check_pipeline(engine, manifest, load_engines(engine, manifest), wanted, MAX_RELATIVE_ERROR, samples)
    except VlmEdgeError as error:
        names = ", ".join(sample.image.name for sample in _chosen(dataset)[: len(images)])
        raise VlmEdgeError(
            f"preflight: on your own samples ({names}) transformers' {type(loaded.model).__name__} and the baseline's "
            f"{manifest.pipeline} pipeline differ: {error.message}",
            error.hint,
        ) from error


def _original_processor(checkpoint: Path) -> Any:
    """The folder's ``AutoImageProcessor``, with Pillow; None where transformers knows none."""
    from transformers import AutoImageProcessor

    from vlm_edge.checkpoints.pretrained import load_pretrained

    try:
        return load_pretrained(AutoImageProcessor, checkpoint, "no image processor", "copy it again", backend="pil")
    except VlmEdgeError:
        return None


def _difference(path: Path, pixels: Pixels, family: Family, processor: Any, spec: ImageProcessing) -> float:
    """The largest difference between our pixels of an image and the processor's, in steps of an 8-bit pixel."""
    from PIL import Image, ImageOps

    from vlm_edge.checkpoints.processors import picture_difference

    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode != "RGB":
        try:
            steps = picture_difference(pixels, spec, family.processed(processor, image, spec))
        except (ValueError, TypeError, IndexError):
            steps = float("inf")
        if steps < float("inf"):
            return steps
        image = image.convert("RGB")
    return picture_difference(pixels, spec, family.processed(processor, image, spec))


def _chosen(dataset: Dataset) -> list[Sample]:
    """A few samples with different images, so that every kind of image that is often there is among them."""
    by_image = {sample.image: sample for sample in reversed(dataset.samples)}
    paths = sorted(by_image)
    step = -(-len(paths) // LOOKED_AT) or 1
    kinds = {path: _kind(path) for path in paths[::step]}
    known = [path for path, kind in kinds.items() if kind is not None]
    counts: Counter[Any] = Counter()
    first: list[Path] = []
    others: list[Path] = []
    for path in known:
        counts[kinds[path]] += 1
        (first if counts[kinds[path]] <= OF_A_KIND else others).append(path)
    return [by_image[path] for path in [*first, *others][:IMAGES]]


def _kind(path: Path) -> tuple[object, ...] | None:
    """Format, mode, transparency and orientation of an image, from its header; None for what can't be opened."""
    from PIL import ExifTags, Image

    from vlm_edge.processing.image_files import DECODE_ERRORS, FORMATS, file_content

    try:
        with Image.open(io.BytesIO(file_content(path)), formats=FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
            return image.format, image.mode, "transparency" in image.info, turned
    except (VlmEdgeError, Image.DecompressionBombError, *DECODE_ERRORS):
        return None
