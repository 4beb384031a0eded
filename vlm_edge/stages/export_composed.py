"""Are the graphs together the model? The runtime's pipeline on images and texts, random ones or a user's, against
transformers.

Each kind of pipeline has two functions: what torch says, asked while the model is in memory, and what the graphs say,
asked when it no longer is. Both see the same samples, and both see a few images at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlm_edge.backends.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import LoadedCheckpoint
from vlm_edge.processing.image_inputs import image_inputs
from vlm_edge.processing.images import preprocess
from vlm_edge.processing.manifest import PipelineKind, PipelineManifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime import AnswerHeadPipeline, CaptioningPipeline, DualEncoderPipeline, VqaPipeline
from vlm_edge.runtime.batches import batches
from vlm_edge.runtime.generate import Request
from vlm_edge.stages.export_answers import GREEDY, Answer, check_answers, token_limit
from vlm_edge.stages.export_check import REPORT_HINT, Difference
from vlm_edge.stages.export_generate import graph_generation, random_text, torch_generation

QUESTIONS = 6
"""Random texts about random images that the composed graphs have to answer as the model does."""
AT_ONCE = 2
"""Images in a batch: what a tower makes of six large ones takes more memory than its weights."""

Tokens = list[list[int]]
"""Answers as token ids, without the end token."""
Outputs = dict[str, Array]
"""By name, one row for each of the samples."""


@dataclass(frozen=True)
class Samples:
    """Images (height, width, 3) uint8, and as many texts; ``tokenizer`` encodes them, None where none are read."""

    images: Sequence[Array]
    texts: Sequence[str]
    tokenizer: Tokenizer | None

    def parts(self, size: int) -> list[slice]:
        """The samples, ``size`` at a time."""
        return [slice(start, start + size) for start in range(0, len(self.images), size)]

    def requests(self) -> list[Request]:
        """One question about one image each."""
        return [Request(text, [image]) for text, image in zip(self.texts, self.images, strict=True)]

    @staticmethod
    def random(folder: Path, manifest: PipelineManifest) -> Samples:
        """Images of random sizes, and texts of random tokens, none of them special; ``folder`` has the tokenizer."""
        generator = np.random.default_rng(0)
        sizes = [generator.integers(16, 96, 2) for _ in range(QUESTIONS)]
        images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        if manifest.text is None:
            return Samples(images, [""] * QUESTIONS, None)
        tokenizer = Tokenizer(folder, manifest.text)
        texts = [
            random_text(tokenizer, 3 + index, generator, lambda words: tokenizer.encode([words]))
            for index in range(QUESTIONS)
        ]
        return Samples(images, texts, tokenizer)

    def inputs(self, manifest: PipelineManifest, images: slice, texts: slice) -> dict[str, Tensor]:
        """Real preprocessing of some: pixel_values (images, 3, height, width) float32, or patches with their masks and
        grids; input_ids and attention_mask (texts, tokens) int64, where texts are read."""
        inputs = dict(image_inputs(list(self.images[images]), manifest.image))
        if self.tokenizer is not None:
            inputs["input_ids"], inputs["attention_mask"] = self.tokenizer.encode(self.texts[texts])
        return {name: torch.from_numpy(values) for name, values in inputs.items()}


class Composition(NamedTuple):
    """The two ways to run one kind of pipeline, in torch and as graphs; ``row`` names what a row of outputs is of."""

    by_torch: Callable[[LoadedCheckpoint, PipelineManifest, Samples], list[Answer] | Outputs]
    by_graphs: Callable[[Path, PipelineManifest, Mapping[str, Engine], Samples], Tokens | Outputs]
    row: str = "questions"


def torch_says(
    loaded: LoadedCheckpoint, manifest: PipelineManifest, samples: Samples | None = None
) -> list[Answer] | Outputs:
    """The reference for the composed graphs: ``generate``'s answers or the model's outputs; default: random samples.

    A language model's random samples are requests of 0 to 2 images.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unfeasible length constraints")  # min_length: fewer tokens are compared
        if manifest.pipeline == "generate":
            return torch_generation(loaded, manifest, samples.requests() if samples else None)
        samples = samples or Samples.random(loaded.folder, manifest)
        return COMPOSITIONS[manifest.pipeline].by_torch(loaded, manifest, samples)


def check_pipeline(
    folder: Path,
    manifest: PipelineManifest,
    graphs: Mapping[str, Engine],
    wanted: list[Answer] | Outputs,
    tolerance: float,
    samples: Samples | None = None,
) -> dict[str, float]:
    """All graphs together against what :func:`torch_says` of the same samples; ``folder`` has the tokenizer.

    Returns:
        What was compared, for the record.

    Raises:
        VlmEdgeError: an answer differs in a token, or a similarity, embedding or logit by more than ``tolerance``.
    """
    actual: Tokens | Outputs
    if manifest.pipeline == "generate":
        actual = graph_generation(folder, manifest, graphs, samples.requests() if samples else None)
    else:
        samples = samples or Samples.random(folder, manifest)
        actual = COMPOSITIONS[manifest.pipeline].by_graphs(folder, manifest, graphs, samples)
    if isinstance(wanted, list):
        assert isinstance(actual, list)
        assert manifest.generation is not None
        return check_answers(actual, wanted, manifest.generation, tolerance)
    assert isinstance(actual, dict)
    assert samples is not None
    row = COMPOSITIONS[manifest.pipeline].row
    return {row: len(samples.images), "max_relative_error": _worst(actual, wanted, tolerance)}


def _worst(actual: Outputs, wanted: Outputs, tolerance: float) -> float:
    """The largest relative difference over all outputs."""
    worst = 0.0
    for name, expected in wanted.items():
        relative = Difference.between(actual[name], expected).relative
        if relative > tolerance:
            raise VlmEdgeError(
                f"composed graphs: {name} differ from the model's by {relative:.1e} (relative); "
                f"allowed: {tolerance:.0e}",
                REPORT_HINT,
            )
        worst = max(worst, relative)
    return worst


def _torch_answers(loaded: LoadedCheckpoint, manifest: PipelineManifest, samples: Samples) -> list[Answer]:
    """``generate`` asked for each question alone, without padding."""
    assert manifest.generation is not None
    settings: dict[str, Any] = GREEDY | {"max_new_tokens": token_limit(manifest.generation)}
    return [
        Answer.of(loaded.family.reference(loaded.model, samples.inputs(manifest, row, row), **settings))
        for row in samples.parts(1)
    ]


def _graph_answers(_folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine], samples: Samples) -> Tokens:
    """Questions of different lengths in one padded batch."""
    assert manifest.generation is not None
    pipeline = VqaPipeline(manifest, graphs, samples.tokenizer)
    features = pipeline.encode_images(samples.images, batch_size=AT_ONCE)
    return pipeline.answer_ids(features, samples.texts, max_new_tokens=token_limit(manifest.generation))


def _graph_captions(
    _folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine], samples: Samples
) -> Tokens:
    assert manifest.generation is not None
    limit = token_limit(manifest.generation)
    pipeline = CaptioningPipeline(manifest, graphs, samples.tokenizer)
    return pipeline.caption_ids(samples.images, batch_size=AT_ONCE, max_new_tokens=limit)


def _torch_similarities(loaded: LoadedCheckpoint, manifest: PipelineManifest, samples: Samples) -> Outputs:
    """The scaled cosines of all images and texts."""
    return {"similarities": _torch_rows(loaded, manifest, samples, every_text=True)}


def _graph_similarities(
    _folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine], samples: Samples
) -> Outputs:
    pipeline = DualEncoderPipeline(manifest, graphs, samples.tokenizer)
    cosines = pipeline.embed_images(samples.images, batch_size=AT_ONCE) @ pipeline.embed_texts(samples.texts).T
    return {"similarities": (manifest.logit_scale or 1.0) * cosines + (manifest.logit_bias or 0.0)}


def _torch_embeddings(loaded: LoadedCheckpoint, manifest: PipelineManifest, samples: Samples) -> Outputs:
    """The vision tower's logits where it has a head, else its embeddings."""
    return {"logits" if manifest.labels else "image_embeds": _torch_rows(loaded, manifest, samples)}


def _graph_embeddings(
    _folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine], samples: Samples
) -> Outputs:
    return _seen(samples, manifest, graphs)


def _torch_pairs(loaded: LoadedCheckpoint, manifest: PipelineManifest, samples: Samples) -> Outputs:
    """The fusion's logits for each image with its own text; and, where there are embeddings, their cosines."""
    logits = {"logits": _torch_rows(loaded, manifest, samples)}
    if "text_encoder" not in manifest.components:
        return logits
    return logits | {"similarities": _torch_rows(loaded, manifest, samples, every_text=True, use_itm_head=False)}


def _graph_pairs(_folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine], samples: Samples) -> Outputs:
    assert samples.tokenizer is not None
    vision = _seen(samples, manifest, graphs)
    ids, mask = samples.tokenizer.encode(samples.texts)
    text = {"input_ids": ids, "attention_mask": mask}
    logits = graphs["fusion"].infer(text | {"image_features": vision["image_features"]})["logits"]
    if "text_encoder" not in graphs:
        return {"logits": logits}
    cosines = vision["image_embeds"] @ graphs["text_encoder"].infer(text)["text_embeds"].T
    return {"logits": logits, "similarities": cosines}


def _torch_judgements(loaded: LoadedCheckpoint, manifest: PipelineManifest, samples: Samples) -> Outputs:
    """The answers' logits for each question about its own image."""
    return {"logits": _torch_rows(loaded, manifest, samples)}


def _graph_judgements(
    _folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine], samples: Samples
) -> Outputs:
    pipeline = AnswerHeadPipeline(manifest, graphs, samples.tokenizer)
    return {"logits": pipeline.logits(pipeline.encode_images(samples.images), samples.texts)}


def _torch_rows(
    loaded: LoadedCheckpoint, manifest: PipelineManifest, samples: Samples, *, every_text: bool = False, **settings: Any
) -> Array:
    """The family's reference for a few images at a time, each with its own text or with every text."""
    rows = []
    for part in samples.parts(AT_ONCE):
        inputs = samples.inputs(manifest, part, slice(None) if every_text else part)
        rows.append(loaded.family.reference(loaded.model, inputs, **settings))
    return np.asarray(torch.cat(rows).numpy())


def _seen(samples: Samples, manifest: PipelineManifest, graphs: Mapping[str, Engine]) -> Outputs:
    """All that the vision encoder gives for the images."""
    parts = [
        graphs["vision_encoder"].infer({"pixel_values": preprocess(list(part), manifest.image)})
        for part in batches(samples.images, AT_ONCE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# language models have requests rather than samples: torch_generation and graph_generation
COMPOSITIONS: dict[PipelineKind, Composition] = {
    "vqa": Composition(_torch_answers, _graph_answers),
    "answer_head": Composition(_torch_judgements, _graph_judgements),
    "captioning": Composition(_torch_answers, _graph_captions),
    "dual_encoder": Composition(_torch_similarities, _graph_similarities, row="images"),
    "embedding": Composition(_torch_embeddings, _graph_embeddings, row="images"),
    "matching": Composition(_torch_pairs, _graph_pairs, row="pairs"),
}
