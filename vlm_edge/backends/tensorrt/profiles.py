"""Optimization profiles: which sizes a plan takes for every dynamic dimension of a pipeline's inputs."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import (
    CROSS_PREFIX,
    NEW,
    PAST,
    TOTAL,
    Component,
    PatchGrid,
    PatchRows,
    PipelineManifest,
)
from vlm_edge.processing.patch_rows import most_patches

Range = tuple[int, int, int]
"""min, opt and max of one dynamic dimension in an optimization profile."""


def dimension_ranges(manifest: PipelineManifest, max_batch: int) -> dict[str, Range]:
    """A range for every dynamic dimension of a pipeline's inputs, tuned for one sample at a time.

    Text is as long as the tokenizer lets it be. A decoder takes one token after the other; where it is given a prompt,
    that comes at once, and what it makes comes behind it. A list of patches is as long as the image processing lets it
    be. Image tokens that stand in a prompt are no more than fit into it; those that cross-attention reads are those of
    as many images as there are layouts for. Every other dimension counts samples.
    """
    rows = manifest.components.values()
    names = {dim for row in rows for spec in row.inputs.values() for dim in spec.shape}
    fixed = manifest.text.pad_to if manifest.text else 1
    longest = fixed or (manifest.text.max_length if manifest.text else 1)
    usual = fixed or min(16, longest)
    made = manifest.generation.max_new_tokens if manifest.generation else 1
    prompt = 1 if "text_encoder" in manifest.components else longest  # the text, unless an encoder reads it
    past = prompt + made - 1
    known = {
        "question_tokens": (1, usual, longest),
        "tokens": (1, usual, longest),
        NEW: (1, 1, prompt),
        PAST: (0, min(usual, past), past),
        TOTAL: (1, min(usual, past) + 1, past + prompt),
    }
    seen = [row.inputs["image_features"].shape for row in rows if "image_features" in row.inputs]
    image = max((shape[1] for shape in seen if len(shape) == 3 and isinstance(shape[1], int)), default=0)
    known["memory_tokens"] = (1, image + usual, image + longest)
    if manifest.prompt:
        pictures, each = max(1, len(manifest.prompt.layouts) - 1), min(manifest.prompt.image_tokens, longest)
        crosses = [spec.shape[2] for row in rows for name, spec in row.outputs.items() if name.startswith(CROSS_PREFIX)]
        if crosses and isinstance(crosses[0], int):
            known["image_tokens"] = (1, crosses[0], pictures * crosses[0])
        else:
            known["image_tokens"] = (0, each, longest * max_batch)
    tiles = manifest.image.tiles
    if isinstance(tiles, PatchRows):
        most = most_patches(manifest.image, tiles)
        known["patches"] = (1, most, most)
    if isinstance(tiles, PatchGrid):
        side = tiles.patch * tiles.merge
        least, most = (max(1, pixels // side**2) for pixels in (tiles.min_pixels, tiles.max_pixels))
        known["groups"] = (least, most, most)
    return {name: known.get(name, (1, 1, max_batch)) for name in names if isinstance(name, str)}


def profile_shapes(component: Component, ranges: Mapping[str, Range]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Input name -> (min, opt, max) shapes of an optimization profile, for every input with a dynamic dimension.

    Raises:
        VlmEdgeError: a dynamic dimension has no range.
    """
    shapes = {}
    for name, spec in component.inputs.items():
        if all(isinstance(dim, int) for dim in spec.shape):
            continue
        if unknown := [dim for dim in spec.shape if isinstance(dim, str) and dim not in ranges]:
            raise VlmEdgeError(f"input {name!r}: no range for its dimension {unknown[0]!r}; known: {', '.join(ranges)}")
        shapes[name] = tuple(
            tuple(dim if isinstance(dim, int) else ranges[dim][which] for dim in spec.shape) for which in range(3)
        )
    return shapes
