"""Learners of families that compare or choose: an image with texts, a pair, a question with the answers of a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import LoadedCheckpoint
from vlm_edge.processing.picture import Picture
from vlm_edge.training.learner import IDS, IMAGES, MASK, Learner, TrainingBatch, answer_of


class CandidateLearner(Learner):
    """``dual_encoder``: every image is compared with all candidates; ``text`` holds these, (candidates, tokens).

    Of a classification the candidates are the classes in the data set's first prompt; else (retrieval) they are the
    texts of the batch, each once (Radford et al. 2021, arXiv:2103.00020, figure 3).
    """

    recordable = False

    def batch(
        self, samples: Sequence[Sample], image_index: NDArray[np.int64], pictures: Sequence[Picture], dataset: Dataset
    ) -> TrainingBatch:
        if dataset.labels:
            template = dataset.prompts[0] if dataset.prompts else "{}"
            texts = [template.replace("{}", name) for name in dataset.labels]
            own = [dataset.labels.index(sample.answers[0]) for sample in samples]
        else:
            texts = list(dict.fromkeys(sample.text for sample in samples))
            own = [texts.index(sample.text) for sample in samples]
        ids, mask = map(torch.from_numpy, self.tokenizer.encode(texts, cut=not dataset.labels))
        rows = tuple(picture.tiles for picture in pictures)
        return TrainingBatch(torch.from_numpy(image_index), {IDS: ids, MASK: mask}, torch.tensor(own), rows)

    def check(self, dataset: Dataset, pictures: Sequence[Picture]) -> None:
        """
        Raises:
            VlmEdgeError: a class is none of the data set's labels, or its text longer than the model reads.
        """
        if not dataset.labels:
            return
        self.recordable = True
        unknown = sorted({sample.answers[0] for sample in dataset.samples} - set(dataset.labels))
        if unknown:
            raise VlmEdgeError(
                f"classes that are no label of the data set: {', '.join(unknown)}; labels: {', '.join(dataset.labels)}",
                "list every class under labels in the data set's manifest",
            )
        self.tokenizer.encode(list(dataset.labels))

    def logits(self, features: Tensor, batch: TrainingBatch) -> Tensor:
        """exp(logit_scale) times the cosines, plus the logit_bias of models that have one (questions, candidates)."""
        model: Any = self.model
        texts = self.parts["text_encoder"](batch.text)["text_embeds"]
        logits: Tensor = features[batch.image_index] @ texts.T * model.logit_scale.exp()
        return logits if self.family.logit_bias(model) is None else logits + model.logit_bias


class PairLearner(Learner):
    """``matching``: each image with its own text (label 1), and with another image's text of the batch (label 0)."""

    recordable = False

    def batch(
        self, samples: Sequence[Sample], image_index: NDArray[np.int64], pictures: Sequence[Picture], dataset: Dataset
    ) -> TrainingBatch:
        texts = [sample.text for sample in samples]
        others = [next((n for n in _behind(place, len(samples)) if _strange(samples[n], sample)), None)
                  for place, sample in enumerate(samples)]  # fmt: skip
        pairs = [(place, other) for place, other in enumerate(others) if other is not None]
        texts += [samples[other].text for _, other in pairs]
        ids, mask = map(torch.from_numpy, self.tokenizer.encode(texts, cut=True))
        index = np.concatenate([image_index, image_index[[place for place, _ in pairs]]])
        labels = torch.tensor([1] * len(samples) + [0] * len(pairs))
        rows = tuple(picture.tiles for picture in pictures)
        return TrainingBatch(torch.from_numpy(index), {IDS: ids, MASK: mask}, labels, rows)

    def check(self, dataset: Dataset, pictures: Sequence[Picture]) -> None:
        """Captions longer than the model reads are cut, as they are where it is judged."""

    def kept(self) -> Sequence[nn.Module]:
        """Texts' embeddings (BLIP), which share their encoder with the pairs, stay those that images are found by."""
        return [self.parts["text_encoder"].module] if "text_encoder" in self.parts else []

    def logits(self, features: Tensor, batch: TrainingBatch) -> Tensor:
        """(pairs, 2): no match, match."""
        return self.parts["fusion"]({**batch.text, IMAGES: features[batch.image_index]})["logits"]


def _behind(place: int, count: int) -> list[int]:
    """The other places, from the next one on."""
    return [(place + step) % count for step in range(1, count)]


def _strange(one: Sample, other: Sample) -> bool:
    """Whether a text is about another image, and not the same."""
    return one.image != other.image and one.text != other.text


class ChoiceLearner(Learner):
    """``answer_head``: each answer of a list is judged for itself, so its logit z stands as the pair (0, z), and its
    label is 1 for the sample's answer, 0 for others: the cross-entropy of these pairs is the binary one."""

    def __init__(self, loaded: LoadedCheckpoint) -> None:
        super().__init__(loaded)
        self.choices = list(self.family.labels(self.model) or ())

    def batch(
        self, samples: Sequence[Sample], image_index: NDArray[np.int64], pictures: Sequence[Picture], dataset: Dataset
    ) -> TrainingBatch:
        ids, mask = map(torch.from_numpy, self.tokenizer.encode([sample.text for sample in samples]))
        labels = torch.tensor([[int(choice == answer_of(sample)) for choice in self.choices] for sample in samples])
        rows = tuple(picture.tiles for picture in pictures)
        return TrainingBatch(torch.from_numpy(image_index), {IDS: ids, MASK: mask}, labels, rows)

    def check(self, dataset: Dataset, pictures: Sequence[Picture]) -> None:
        """
        Raises:
            VlmEdgeError: no sample's answer is in the model's list, or a question is longer than the model reads.
        """
        super().check(dataset, pictures)
        if {answer_of(sample) for sample in dataset.samples}.isdisjoint(self.choices):
            raise VlmEdgeError(
                f"{dataset.name}: none of its answers is in the model's list of {len(self.choices)}",
                "take a data set whose answers are among id2label in the model's config.json",
            )

    def encode(self, batch: TrainingBatch) -> Tensor:
        """The patches with their mask and grid behind their values (images, patches, values + 3): one graph sees image
        and question together, so there is nothing to compute of the image alone."""
        values = batch.pixels["pixel_values"]
        grid = batch.pixels["spatial_shapes"][:, None].expand(-1, values.shape[1], -1)
        return torch.cat([values, batch.pixels["pixel_attention_mask"][..., None], grid], dim=-1)

    def logits(self, features: Tensor, batch: TrainingBatch) -> Tensor:
        """(questions, answers, 2)."""
        seen = features[batch.image_index]
        beside = seen[..., -3:].long()
        feed = {
            **batch.text,
            "pixel_values": seen[..., :-3],
            "pixel_attention_mask": beside[..., 0],
            "spatial_shapes": beside[:, 0, 1:],
        }
        logits = self.parts["fusion"](feed)["logits"]
        return torch.stack([torch.zeros_like(logits), logits], dim=-1)

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether the likeliest answer is the sample's."""
        best = logits[..., 1].argmax(dim=1, keepdim=True)
        return labels.gather(1, best)[:, 0] == 1
