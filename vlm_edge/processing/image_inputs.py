"""Images as a vision encoder takes them: whole, or in the tiles or patches that the manifest asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_edge.processing.images import Pixels, preprocess
from vlm_edge.processing.manifest import AnyResTiles, ImageProcessing, PatchRows, Prompt
from vlm_edge.processing.patch_rows import row_picture, stacked
from vlm_edge.processing.patches import patch_picture
from vlm_edge.processing.picture import Inputs, Picture
from vlm_edge.processing.tiles import anyres_embeds, anyres_picture, canvas_picture, split_picture


def picture_of(image: Pixels, spec: ImageProcessing, prompt: Prompt) -> Picture:
    """One RGB image, (height, width, 3) uint8, for the vision encoder and the prompt."""
    if spec.tiles is None:
        text = prompt.image_token * prompt.image_tokens
        return Picture({"pixel_values": preprocess([image], spec)}, text, (image.shape[0], image.shape[1]))
    if spec.tiles.kind == "anyres":
        return anyres_picture(image, spec, spec.tiles, prompt)
    if spec.tiles.kind == "canvas":
        return canvas_picture(image, spec, spec.tiles, prompt)
    if spec.tiles.kind == "patches":
        return patch_picture(image, spec, spec.tiles, prompt)
    if spec.tiles.kind == "rows":
        return row_picture(image, spec, spec.tiles)
    return split_picture(image, spec, spec.tiles, prompt)


def image_inputs(images: Sequence[Pixels], spec: ImageProcessing) -> Inputs:
    """A batch of RGB images, (height, width, 3) uint8 each, for a component that no prompt goes with: ``pixel_values``,
    and of lists of patches also ``pixel_attention_mask`` and ``spatial_shapes``."""
    if isinstance(spec.tiles, PatchRows):
        return stacked([row_picture(image, spec, spec.tiles) for image in images])
    return {"pixel_values": preprocess(images, spec)}


def picture_embeds(
    embeds: NDArray[np.float32], newline: NDArray[np.float32] | None, picture: Picture, spec: ImageProcessing
) -> NDArray[np.float32]:
    """The connector's output for a picture's tiles (tiles, tokens, width) -> the embeddings of its image tokens
    (image_tokens, width), in the order of the prompt. ``newline`` (width,) ends a row of patches, where there is one.
    """
    if isinstance(spec.tiles, AnyResTiles):
        assert newline is not None
        return anyres_embeds(embeds, newline, picture, spec.tiles)
    if picture.order is not None:
        return embeds[picture.order]
    return embeds.reshape(-1, embeds.shape[-1])
