"""Train any family through the torch modules that are exported: the device's ids and pixels, its masks and its sums.

A :class:`Learner` calls a family's components as the runtime's pipeline calls their graphs, with gradients and the
answer given (teacher-forced). There is one for each kind of pipeline, and none for single families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.families.base import ComponentExport
from vlm_edge.families.loading import LoadedCheckpoint
from vlm_edge.families.parts.component import SplitEncoder, cache_names
from vlm_edge.processing.image_inputs import picture_of
from vlm_edge.processing.images import Pixels, preprocess
from vlm_edge.processing.manifest import SELF_MASK, ImageProcessing, PatchRows
from vlm_edge.processing.patch_rows import row_picture, stacked
from vlm_edge.processing.picture import Picture
from vlm_edge.processing.text import Tokenizer
from vlm_edge.training.losses import IGNORED

IMAGES, IDS, MASK, DECODER_IDS = "image_features", "input_ids", "attention_mask", "decoder_input_ids"


@dataclass(frozen=True)
class TrainingBatch:
    """Questions about images, as tensors. Several questions may share an image.

    ``image_index`` (questions,) int64: the image that each question asks about. ``text``: ids and masks by name.
    ``labels`` int64, aligned with the logits: ``logits[:, t]`` predicts ``labels[:, t]``, nothing is shifted, and no
    loss is taken at -100. ``rows``: the rows (tiles, groups of patches) that each image has in the vision encoder's
    inputs, ``pixels``, by name; these are left out where the images' features are given.
    """

    image_index: Tensor
    text: Mapping[str, Tensor]
    labels: Tensor
    rows: tuple[int, ...]
    pixels: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> TrainingBatch:
        text, pixels = ({name: value.to(device) for name, value in part.items()} for part in (self.text, self.pixels))
        return TrainingBatch(self.image_index.to(device), text, self.labels.to(device), self.rows, pixels)


class Part:
    """A component's module, called with its inputs by name, and its outputs by name."""

    def __init__(self, export: ComponentExport) -> None:
        self.module: Any = export.module
        self.inputs, self.outputs = tuple(export.example), tuple(export.output_shapes)
        self.export = export

    def __call__(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.outputs, self.module(*(feed[name] for name in self.inputs)), strict=True))


class Learner(ABC):
    """A checkpoint as it is trained. Its components share their weights with ``model``, which is trained in place.

    Make it after surgery that replaces modules; surgery that narrows them may follow.
    """

    recordable = True
    """Whether a question's logits have the same shape and meaning whatever else is in its batch."""

    def __init__(self, loaded: LoadedCheckpoint) -> None:
        family, folder = loaded.family, loaded.folder
        self.model, self.family, self.folder = loaded.model, family, folder
        self.image: ImageProcessing = family.image_processing(folder)
        self.prompt = family.prompt(folder)
        spec = family.text_processing(folder)
        assert spec is not None
        self.tokenizer = Tokenizer(folder, spec)
        self.parts = {name: Part(export) for name, export in family.components(self.model, self.image).items()}

    @abstractmethod
    def batch(
        self, samples: Sequence[Sample], image_index: NDArray[np.int64], pictures: Sequence[Picture], dataset: Dataset
    ) -> TrainingBatch:
        """``samples`` of ``dataset``, each about its entry of ``pictures``, as tensors without pixels."""

    @abstractmethod
    def logits(self, features: Tensor, batch: TrainingBatch) -> Tensor:
        """Logits that the task's answer is read from, (questions, ..., classes) as ``batch.labels`` (questions, ...).

        ``features`` are :meth:`encode`'s for the batch's images.
        """

    def check(self, dataset: Dataset, pictures: Sequence[Picture]) -> None:
        """See that every sample of ``dataset`` can be learned from; ``pictures`` are its images'.

        Raises:
            VlmEdgeError: one has more tokens than the model reads.
        """
        self.tokenizer.encode(list({sample.text for sample in dataset.samples}))

    def to(self, device: torch.device) -> None:
        """Move the model, and what its components hold beside its weights."""
        self.model.to(device)
        for part in self.parts.values():
            part.module.to(device)

    @property
    def tower(self) -> nn.Module | None:
        """The vision tower, which stays as it is while the rest recovers; None where there is no such part."""
        path = self.family.vision_tower_path
        return self.model.get_submodule(path) if path and "vision_encoder" in self.parts else None

    def kept(self) -> Sequence[nn.Module]:
        """Modules that training leaves as they are, beside the tower."""
        return ()

    def picture(self, image: Pixels) -> Picture:
        """One RGB image, (height, width, 3) uint8, as the device prepares it."""
        if self.prompt is not None:
            return picture_of(image, self.image, self.prompt)
        if isinstance(self.image.tiles, PatchRows):
            return row_picture(image, self.image, self.image.tiles)
        return Picture({"pixel_values": preprocess([image], self.image)}, "", (image.shape[0], image.shape[1]))

    def pixels(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """The vision encoder's inputs of several pictures."""
        if isinstance(self.image.tiles, PatchRows):
            inputs = stacked(pictures)
        else:
            names = pictures[0].inputs
            inputs = {name: np.concatenate([picture.inputs[name] for picture in pictures]) for name in names}
        return {name: torch.from_numpy(values) for name, values in inputs.items()}

    def encode(self, batch: TrainingBatch) -> Tensor:
        """The images' features (rows, ...), with gradients: one row an image, or one for each of its tiles."""
        if self.image.tiles is None or self.image.tiles.kind != "patches":
            return self._see(batch.pixels)
        parts = {name: torch.split(values, list(batch.rows)) for name, values in batch.pixels.items()}
        images = zip(*parts.values(), strict=True)
        return torch.cat([self._see(dict(zip(parts, image, strict=True))) for image in images])

    def _see(self, pixels: Mapping[str, Tensor]) -> Tensor:
        vision = self.parts["vision_encoder"]
        arguments = [pixels[name] for name in vision.inputs]
        see = vision.module.states if isinstance(vision.module, SplitEncoder) else vision.module
        seen = see(*arguments)
        features: Tensor = seen if isinstance(seen, Tensor) else seen[0]
        return features

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(questions,) bool: whether the likeliest class is the label's, at every position that counts."""
        matches = (logits.argmax(dim=-1) == labels) | (labels == IGNORED)
        return matches.flatten(1).all(dim=1) if matches.ndim > 1 else matches


def answer_of(sample: Sample) -> str:
    """The answer that was given most; of several, the first."""
    return Counter(sample.answers).most_common(1)[0][0]


def rows_of(features: Tensor, rows: Sequence[int], index: Tensor) -> Tensor:
    """The rows of the images ``index``, one after the other; ``rows`` says how many each image has in ``features``."""
    if len(features) == len(rows):
        return features[index]
    parts = torch.split(features, list(rows))
    return torch.cat([parts[image] for image in index.tolist()])


def empty_past(decoder: Any, like: Tensor) -> dict[str, Tensor]:
    """A decoder's caches before the first token, for as many rows as ``like`` has."""
    shapes: dict[int, tuple[int, int]] = decoder.cache_shapes()
    sizes = [size for size in shapes.values() for _ in ("key", "value")]
    return {
        name: like.new_zeros((len(like), heads, 0, head_dim), dtype=torch.float32)
        for name, (heads, head_dim) in zip(cache_names("past_key_values", shapes), sizes, strict=True)
    }


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Lists of ids -> (rows, longest) int64, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


class AnswerLearner(Learner):
    """``vqa`` and ``captioning``: a decoder with cross-attention reads [start] a b and learns a b [end]."""

    def __init__(self, loaded: LoadedCheckpoint) -> None:
        super().__init__(loaded)
        generation = self.family.generation(self.folder)
        assert generation is not None
        self.generation = generation
        # a task's wording is the question's alone
        self.answers = Tokenizer(self.folder, self.tokenizer.spec.model_copy(update={"tasks": {}, "pad_to": None}))

    def batch(
        self, samples: Sequence[Sample], image_index: NDArray[np.int64], pictures: Sequence[Picture], dataset: Dataset
    ) -> TrainingBatch:
        """The first of a captioning data set's prompts is what every caption begins with; it is read and not
        learned."""
        given = self.generation
        text: dict[str, Tensor] = {}
        lead = [given.start_token_id]
        lead += [] if given.first_token_id is None else [given.first_token_id]
        if "text_encoder" in self.parts:
            ids, mask = self.tokenizer.encode([sample.text for sample in samples])
            text = {IDS: torch.from_numpy(ids), MASK: torch.from_numpy(mask)}
        elif dataset.prompts:
            lead += self._ids(dataset.prompts[0])
        room = (given.positions or self.answers.longest) - len(lead)
        answers = [[*self._ids(answer_of(sample))[:room], given.eos_token_id] for sample in samples]
        text[DECODER_IDS] = padded([[*lead, *answer[:-1]] for answer in answers], given.pad_token_id)
        labels = padded([[IGNORED] * (len(lead) - 1) + answer for answer in answers], IGNORED)
        return TrainingBatch(torch.from_numpy(image_index), text, labels, tuple(each.tiles for each in pictures))

    def check(self, dataset: Dataset, pictures: Sequence[Picture]) -> None:
        if "text_encoder" in self.parts:
            super().check(dataset, pictures)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.answers.encode([text], special_tokens=False, cut=True)[0][0].tolist()
        return ids

    def logits(self, features: Tensor, batch: TrainingBatch) -> Tensor:
        """(questions, answer_tokens, vocabulary)."""
        vision, decoder = self.parts["vision_encoder"], self.parts["decoder"]
        feed = dict(batch.text)
        if isinstance(vision.module, SplitEncoder):
            feed |= dict(zip(vision.outputs, vision.module.outputs(features), strict=True))
            features = feed.get(IMAGES, features)
        if "text_encoder" not in self.parts:
            feed |= {name: feed[name][batch.image_index] for name in vision.outputs}
        else:
            encoder = self.parts["text_encoder"]
            if hasattr(encoder.module, "of_images"):
                outputs = encoder.module.of_images(feed[IDS], feed[MASK], features, batch.image_index)
                feed |= dict(zip(encoder.outputs, outputs, strict=True))
            else:
                feed |= encoder(feed | {IMAGES: features[batch.image_index]})
        ids = feed[DECODER_IDS]
        feed |= empty_past(decoder.module, ids) | {IDS: ids, SELF_MASK: torch.ones_like(ids)}
        return decoder(feed)["logits"]
