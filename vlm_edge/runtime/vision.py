"""Encode images for a language model: vision_encoder, then connector, several tiles at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vlm_edge.backends.base import Array, Engine
from vlm_edge.processing.image_inputs import picture_embeds, picture_of
from vlm_edge.processing.images import ImageSource, read_image
from vlm_edge.processing.manifest import ImageProcessing, Prompt
from vlm_edge.processing.picture import Picture
from vlm_edge.processing.text import Ids

TILES_AT_ONCE = 2
"""On a CPU more at once is no faster, and attention's scores alone are 48 MiB for a tile of SmolVLM."""
QUESTION_IDS, QUESTION_MASK = "qformer_input_ids", "qformer_attention_mask"
"""The question's inputs in a connector that reads it (InstructBLIP)."""


@dataclass(frozen=True)
class EncodedImage:
    """One encoded image for any number of prompts: its text in a prompt, the embeddings of its image tokens
    (image_tokens, width) float32, and their (or the tiles') rows and columns.

    With cross-attention there are no embeddings, but ``cross``: its keys and values by name, (groups, image_tokens,
    head_dim) each; ``shown`` (image_tokens,) int64 is 1 for those that belong to the image, not to an empty tile.
    Where the connector reads the question there are only ``features``, the vision encoder's (tokens, hidden), until
    :meth:`ImageEncoder.instructed`.
    """

    text: str
    embeds: Array | None
    grid: tuple[int, int]
    cross: Mapping[str, Array] = field(default_factory=dict)
    shown: Array | None = None
    features: Array | None = None


class ImageEncoder:
    """Runs the components that see images. Images whose tiles fit into a batch share one run."""

    def __init__(self, vision_encoder: Engine, connector: Engine, image: ImageProcessing, prompt: Prompt) -> None:
        self._vision = vision_encoder
        self._connector = connector
        self._image = image
        self._prompt = prompt
        self.reads_question = QUESTION_IDS in connector.inputs
        self._alone = image.tiles is not None and image.tiles.kind == "patches"

    def encode(self, images: Sequence[ImageSource], tiles_at_once: int = TILES_AT_ONCE) -> Iterator[EncodedImage]:
        """Every image, in order, ``tiles_at_once`` tiles in a run; an image of its own size is run alone and whole.

        Raises:
            VlmEdgeError: an image can't be read, as :func:`vlm_edge.processing.images.read_image`.
        """
        held: list[Picture] = []
        for image in images:
            held.append(picture_of(read_image(image, self._image.transparency), self._image, self._prompt))
            if self._alone or sum(picture.tiles for picture in held) >= tiles_at_once:
                yield from self._run(held, tiles_at_once)
                held = []
        if held:
            yield from self._run(held, tiles_at_once)

    def instructed(self, images: Sequence[EncodedImage], input_ids: Ids, attention_mask: Ids) -> list[EncodedImage]:
        """One request's images, encoded by a connector that reads the question (1, tokens)."""
        if not images:
            return []
        features = [image.features for image in images if image.features is not None]
        feed = {
            "image_features": np.stack(features),
            QUESTION_IDS: input_ids.repeat(len(images), axis=0),
            QUESTION_MASK: attention_mask.repeat(len(images), axis=0),
        }
        embeds = self._connector.infer(feed)["image_embeds"]
        return [replace(image, embeds=rows) for image, rows in zip(images, embeds, strict=True)]

    def _run(self, pictures: Sequence[Picture], tiles_at_once: int) -> Iterator[EncodedImage]:
        tiles = sum(picture.tiles for picture in pictures)
        at_once = tiles if self._alone else tiles_at_once
        feed: dict[str, Array] = {
            name: np.concatenate([picture.inputs[name] for picture in pictures]) for name in pictures[0].inputs
        }
        parts = [
            self._infer({name: values[start : start + at_once] for name, values in feed.items()})
            for start in range(0, tiles, at_once)
        ]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        start = 0
        for picture in pictures:
            rows = {name: values[start : start + picture.tiles] for name, values in outputs.items()}
            yield self._encoded(picture, rows)
            start += picture.tiles

    def _infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of the connector for some tiles; of the vision encoder where the connector reads the question."""
        features = self._vision.infer(feed)
        if self.reads_question:
            return features
        return self._connector.infer({name: features[name] for name in self._connector.inputs})

    def _encoded(self, picture: Picture, rows: Mapping[str, Array]) -> EncodedImage:
        """One picture, from its own rows of the connector's outputs."""
        if self.reads_question:
            return EncodedImage(picture.text, None, picture.grid, features=rows["image_features"][0])
        if "image_embeds" in rows:
            newline = rows["image_newline"][0] if "image_newline" in rows else None
            embeds = picture_embeds(rows["image_embeds"], newline, picture, self._image)
            return EncodedImage(picture.text, embeds, picture.grid)
        cross = {name: values[0] for name, values in rows.items()}
        tokens = next(iter(cross.values())).shape[1]
        tiles = picture.inputs.get("aspect_ratio_mask", np.ones((1, 1), np.int64))[0]
        return EncodedImage(picture.text, None, picture.grid, cross, np.repeat(tiles, tokens // len(tiles)))
