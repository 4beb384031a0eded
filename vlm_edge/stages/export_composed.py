"""Are the exported graphs together the model? The runtime's pipeline on random images and texts, against transformers.

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

from vlm_edge.engines.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.checkpoint import LoadedCheckpoint
from vlm_edge.processing.images import preprocess
from vlm_edge.processing.manifest import PipelineKind, PipelineManifest
from vlm_edge.processing.pictures import image_inputs
from vlm_edge.processing.text import TextEncoder
from vlm_edge.runtime import AnswerHeadPipeline, CaptioningPipeline, DualEncoderPipeline, VqaPipeline
from vlm_edge.runtime.batches import batches
from vlm_edge.stages.export_answers import GREEDY, Answer, check_answers, token_limit
from vlm_edge.stages.export_check import REPORT_HINT, Difference
from vlm_edge.stages.export_generate import graph_generation, torch_generation

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
    """Images (height, width, 3) uint8, and as many texts; ``text`` encodes them, None where none are read."""

    images: Sequence[Array]
    texts: Sequence[str]
    text: TextEncoder | None

    @staticmethod
    def random(folder: Path, manifest: PipelineManifest) -> Samples:
        """Images of random sizes, and texts of random tokens, none of them special; ``folder`` has the tokenizer."""
        generator = np.random.default_rng(0)
        sizes = [generator.integers(16, 96, 2) for _ in range(QUESTIONS)]
        images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        if manifest.text is None:
            return Samples(images, [""] * QUESTIONS, None)
        text = TextEncoder(folder, manifest.text)
        ids = [generator.integers(0, text.vocabulary_size, 3 + index).tolist() for index in range(QUESTIONS)]
        return Samples(images, [text.decode(row) for row in ids], text)

    def tensors(self, manifest: PipelineManifest, images: slice, texts: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Real preprocessing of some: pixel_values (images, 3, height, width) float32, input_ids and attention_mask
        (texts, tokens) int64."""
        pixels = torch.from_numpy(image_inputs(list(self.images[images]), manifest.image)["pixel_values"])
        if self.text is None:
            nothing = torch.zeros((len(self.texts[texts]), 0), dtype=torch.int64)
            return pixels, nothing, nothing
        ids, mask = self.text.encode(self.texts[texts])
        return pixels, torch.from_numpy(ids), torch.from_numpy(mask)

    def patch_settings(self, manifest: PipelineManifest, images: slice) -> dict[str, Any]:
        """What else goes with the pixels of some images: masks and grids, where an image is a list of patches."""
        inputs = image_inputs(list(self.images[images]), manifest.image)
        return {name: torch.from_numpy(values) for name, values in inputs.items() if name != "pixel_values"}


class Composition(NamedTuple):
    """How one kind of pipeline is asked, in torch and as graphs, and what a row of its outputs is about."""

    by_torch: Callable[[LoadedCheckpoint, PipelineManifest], list[Answer] | Outputs]
    by_graphs: Callable[[Path, PipelineManifest, Mapping[str, Engine]], Tokens | Outputs]
    row: str = "questions"


def torch_says(loaded: LoadedCheckpoint, manifest: PipelineManifest) -> list[Answer] | Outputs:
    """What the composed graphs must give: ``generate``'s answers, or the model's outputs."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unfeasible length constraints")  # min_length: fewer tokens are compared
        return COMPOSITIONS[manifest.pipeline].by_torch(loaded, manifest)


def check_pipeline(
    folder: Path,
    manifest: PipelineManifest,
    graphs: Mapping[str, Engine],
    wanted: list[Answer] | Outputs,
    tolerance: float,
) -> dict[str, float]:
    """All graphs together against what :func:`torch_says`; ``folder`` has the tokenizer.

    Returns:
        What was compared, for the record.

    Raises:
        VlmEdgeError: an answer differs in a token, or a similarity, embedding or logit by more than ``tolerance``.
    """
    composition = COMPOSITIONS[manifest.pipeline]
    actual = composition.by_graphs(folder, manifest, graphs)
    if isinstance(wanted, list):
        assert isinstance(actual, list)
        assert manifest.generation is not None
        return check_answers(actual, wanted, manifest.generation, tolerance)
    assert isinstance(actual, dict)
    return {composition.row: QUESTIONS, "max_relative_error": _worst(actual, wanted, tolerance)}


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


def _torch_answers(loaded: LoadedCheckpoint, manifest: PipelineManifest) -> list[Answer]:
    """``generate`` asked for each question alone, without padding."""
    assert manifest.generation is not None
    samples = Samples.random(loaded.folder, manifest)
    settings: dict[str, Any] = GREEDY | {"max_new_tokens": token_limit(manifest.generation)}
    return [
        Answer.of(loaded.family.reference(loaded.model, *samples.tensors(manifest, row, row), **settings))
        for row in _parts(1)
    ]


def _graph_answers(folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine]) -> Tokens:
    """Questions of different lengths in one padded batch."""
    assert manifest.generation is not None
    samples = Samples.random(folder, manifest)
    pipeline = VqaPipeline(manifest, graphs, samples.text)
    features = pipeline.encode_images(samples.images, batch_size=AT_ONCE)
    return pipeline.answer_ids(features, samples.texts, max_new_tokens=token_limit(manifest.generation))


def _graph_captions(folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine]) -> Tokens:
    assert manifest.generation is not None
    samples, limit = Samples.random(folder, manifest), token_limit(manifest.generation)
    pipeline = CaptioningPipeline(manifest, graphs, samples.text)
    return pipeline.caption_ids(samples.images, batch_size=AT_ONCE, max_new_tokens=limit)


def _torch_similarities(loaded: LoadedCheckpoint, manifest: PipelineManifest) -> Outputs:
    """The scaled cosines of all images and texts."""
    return {"similarities": _torch_rows(loaded, manifest, every_text=True)}


def _graph_similarities(folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine]) -> Outputs:
    samples = Samples.random(folder, manifest)
    pipeline = DualEncoderPipeline(manifest, graphs, samples.text)
    cosines = pipeline.embed_images(samples.images, batch_size=AT_ONCE) @ pipeline.embed_texts(samples.texts).T
    return {"similarities": (manifest.logit_scale or 1.0) * cosines + (manifest.logit_bias or 0.0)}


def _torch_embeddings(loaded: LoadedCheckpoint, manifest: PipelineManifest) -> Outputs:
    """The vision tower's logits where it has a head, else its embeddings."""
    return {"logits" if manifest.labels else "image_embeds": _torch_rows(loaded, manifest)}


def _graph_embeddings(folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine]) -> Outputs:
    return _seen(Samples.random(folder, manifest), manifest, graphs)


def _torch_pairs(loaded: LoadedCheckpoint, manifest: PipelineManifest) -> Outputs:
    """The fusion's logits for each image with its own text; and, where there are embeddings, their cosines."""
    logits = {"logits": _torch_rows(loaded, manifest)}
    if "text_encoder" not in manifest.components:
        return logits
    return logits | {"similarities": _torch_rows(loaded, manifest, every_text=True, use_itm_head=False)}


def _graph_pairs(folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine]) -> Outputs:
    samples = Samples.random(folder, manifest)
    assert samples.text is not None
    vision = _seen(samples, manifest, graphs)
    ids, mask = samples.text.encode(samples.texts)
    text = {"input_ids": ids, "attention_mask": mask}
    logits = graphs["fusion"].infer(text | {"image_features": vision["image_features"]})["logits"]
    if "text_encoder" not in graphs:
        return {"logits": logits}
    cosines = vision["image_embeds"] @ graphs["text_encoder"].infer(text)["text_embeds"].T
    return {"logits": logits, "similarities": cosines}


def _torch_judgements(loaded: LoadedCheckpoint, manifest: PipelineManifest) -> Outputs:
    """The answers' logits for each question about its own image."""
    return {"logits": _torch_rows(loaded, manifest)}


def _graph_judgements(folder: Path, manifest: PipelineManifest, graphs: Mapping[str, Engine]) -> Outputs:
    samples = Samples.random(folder, manifest)
    pipeline = AnswerHeadPipeline(manifest, graphs, samples.text)
    return {"logits": pipeline.logits(pipeline.encode_images(samples.images), samples.texts)}


def _parts(size: int) -> list[slice]:
    """The samples, ``size`` at a time."""
    return [slice(start, start + size) for start in range(0, QUESTIONS, size)]


def _torch_rows(
    loaded: LoadedCheckpoint, manifest: PipelineManifest, *, every_text: bool = False, **settings: Any
) -> Array:
    """The family's reference for a few images at a time, each with its own text or with every text."""
    samples = Samples.random(loaded.folder, manifest)
    rows = []
    for part in _parts(AT_ONCE):
        tensors = samples.tensors(manifest, part, slice(None) if every_text else part)
        more = samples.patch_settings(manifest, part) | settings
        rows.append(loaded.family.reference(loaded.model, *tensors, **more))
    return np.asarray(torch.cat(rows).numpy())


def _seen(samples: Samples, manifest: PipelineManifest, graphs: Mapping[str, Engine]) -> Outputs:
    """All that the vision encoder gives for the images."""
    parts = [
        graphs["vision_encoder"].infer({"pixel_values": preprocess(list(part), manifest.image)})
        for part in batches(samples.images, AT_ONCE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


COMPOSITIONS: dict[PipelineKind, Composition] = {
    "vqa": Composition(_torch_answers, _graph_answers),
    "answer_head": Composition(_torch_judgements, _graph_judgements),
    "captioning": Composition(_torch_answers, _graph_captions),
    "generate": Composition(torch_generation, graph_generation),
    "dual_encoder": Composition(_torch_similarities, _graph_similarities, row="images"),
    "embedding": Composition(_torch_embeddings, _graph_embeddings, row="images"),
    "matching": Composition(_torch_pairs, _graph_pairs, row="pairs"),
}
