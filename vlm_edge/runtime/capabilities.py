"""Capabilities of a pipeline: tasks, stages and the command line ask for one of these, never for a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.base import Array, Engine
from vlm_edge.processing.images import ImageSource
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.text import Tokenizer

Capability = Literal["answers", "captions", "embeds", "scores", "classifies"]
MEANINGS: dict[Capability, str] = {
    "answers": "answers questions about images",
    "captions": "writes texts about images",
    "embeds": "embeds images and texts into one space",
    "scores": "scores pairs of an image and a text",
    "classifies": "classifies images",
}


@dataclass(frozen=True)
class Batch:
    """Input of a dry run: images, a text for each of them, and the most tokens to write (default: the manifest's)."""

    images: Sequence[ImageSource]
    texts: Sequence[str]
    max_new_tokens: int | None = None

    def __len__(self) -> int:
        return len(self.images)


class Pipeline(Protocol):
    """The part that all pipelines share. A class lists the capabilities of its kind, an instance those it has."""

    manifest: PipelineManifest
    capabilities: frozenset[Capability]

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def __init__(
        self, manifest: PipelineManifest, engines: Mapping[str, Engine], tokenizer: Tokenizer | None
    ) -> None: ...

    def dry_run(self, batch: Batch) -> None:
        """Run every component on a batch, and give nothing back."""


class Answers(Pipeline, Protocol):
    """``answers``: a question about an image, one at a time or many about images that were encoded once."""

    @property
    def answer(self) -> Callable[..., str]:
        """(image, question) -> the answer; with ``max_new_tokens`` where answers are written."""

    def encode_images(self, images: Sequence[ImageSource]) -> NDArray[Any]:
        """One entry an image, for :meth:`answer_ids`."""

    def answer_ids(self, features: NDArray[Any], questions: Sequence[str]) -> list[list[int]]:
        """Token ids of the answer to each question about its own entry of ``features``."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Chooses(Answers, Protocol):
    """``answers`` from the list ``manifest.labels``."""

    def scores(self, pictures: NDArray[Any], questions: Sequence[str]) -> NDArray[np.float32]: ...


class Captions(Pipeline, Protocol):
    """``captions``: a text about an image, which may begin with a prompt."""

    def caption(self, image: ImageSource, prompt: str = "", *, max_new_tokens: int | None = None) -> str: ...

    def caption_ids(self, images: Sequence[ImageSource], prompt: str = "") -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Embeds(Pipeline, Protocol):
    """``embeds``: images and texts as vectors of length 1."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def embed_images(self, images: Sequence[ImageSource], *, batch_size: int = 16) -> Array: ...

    def embed_texts(self, texts: Sequence[str], *, cut: bool = False) -> Array: ...


class Scores(Pipeline, Protocol):
    """``scores``: whether a text matches an image."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def encode_images(self, images: Sequence[ImageSource]) -> Array: ...

    def match_logits(self, features: Array, texts: Sequence[str], *, cut: bool = False) -> Array: ...

    def probabilities(self, features: Array, texts: Sequence[str]) -> NDArray[np.float32]: ...


class Classifies(Pipeline, Protocol):
    """``classifies``: among the model's own classes, in the order of ``manifest.labels``."""

    def classify(self, images: Sequence[ImageSource]) -> NDArray[np.float32]: ...


class ZeroShot(Embeds, Protocol):
    """``classifies`` with ``embeds``: among labels that are given."""

    def label_embeddings(self, labels: Sequence[str], prompts: Sequence[str]) -> Array: ...

    def classify(
        self, images: Sequence[ImageSource], labels: Sequence[str], prompts: Sequence[str] = ("{}",)
    ) -> NDArray[np.float32]: ...


def answers(pipeline: Pipeline) -> TypeGuard[Answers]:
    return "answers" in pipeline.capabilities


def chooses(pipeline: Pipeline) -> TypeGuard[Chooses]:
    return answers(pipeline) and bool(pipeline.manifest.labels)


def captions(pipeline: Pipeline) -> TypeGuard[Captions]:
    return "captions" in pipeline.capabilities


def embeds(pipeline: Pipeline) -> TypeGuard[Embeds]:
    return "embeds" in pipeline.capabilities


def scores(pipeline: Pipeline) -> TypeGuard[Scores]:
    return "scores" in pipeline.capabilities


def classifies(pipeline: Pipeline) -> TypeGuard[Classifies]:
    """Among its own classes: see :func:`zero_shot` for those that are given."""
    return "classifies" in pipeline.capabilities and "embeds" not in pipeline.capabilities


def zero_shot(pipeline: Pipeline) -> TypeGuard[ZeroShot]:
    return pipeline.capabilities >= {"classifies", "embeds"}
