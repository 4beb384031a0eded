"""Checkpoint folders of any family for its test: a seeded random model, an image processor's settings, a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_edge.backends import load_engine
from vlm_edge.backends.base import Engine
from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.stage import Progress, SilentProgress, StageInputs, StageWork
from vlm_edge.families.loading import LoadedCheckpoint, load_checkpoint
from vlm_edge.runtime import load_pipeline
from vlm_edge.runtime.pipeline import build_pipeline
from vlm_edge.stages.export import ExportConfig, run
from vlm_edge.zoo.create import randomize, write_tokenizer

TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VOCABULARY, POSITIONS = 128, 24
PAD, CLS, SEP, MASK, DEC = 0, 2, 3, 4, 5
"""Ids of the tokenizer's special tokens."""


def write_checkpoint(
    folder: Path,
    model: Any,
    image_processor: dict[str, Any] | None = None,
    *,
    generation: dict[str, Any] | None = None,
    seed: int = 3,
) -> Path:
    """``model`` with random weights (biases and norms too), the processor's settings and the zoo's tokenizer."""
    randomize(model, seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for name, values in (("preprocessor_config", image_processor), ("generation_config", generation)):
        if values is not None:
            (folder / f"{name}.json").write_text(json.dumps(values))
    write_tokenizer(folder, VOCABULARY, POSITIONS)
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Set members of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@dataclass
class Exported:
    """One checkpoint, the graphs that the export stage made of it, and what it measured; the rest when asked for."""

    checkpoint: Path
    folder: Path
    facts: dict[str, Any]
    model_class: Any = None
    name: str = ""
    """Its row in docs/families.md."""

    @cached_property
    def pipeline(self) -> Any:
        """The graphs on one thread."""
        return load_pipeline(self.folder, threads=1)

    @property
    def manifest(self) -> Any:
        return self.pipeline.manifest

    @cached_property
    def loaded(self) -> LoadedCheckpoint:
        """As the export stage loads it."""
        return load_checkpoint(self.checkpoint)

    @property
    def family(self) -> Any:
        return self.loaded.family

    @cached_property
    def model(self) -> Any:
        """transformers' own model of the checkpoint, loaded by transformers."""
        return self.model_class.from_pretrained(self.checkpoint, attn_implementation="eager").eval()

    def without_cache(self) -> Any:
        """A pipeline for one batch whose decoder reads the whole text again at every step."""
        engines: dict[str, Any] = {
            name: load_engine("onnxruntime", self.folder / component.file, component)
            for name, component in self.manifest.components.items()
        }
        engines["decoder"] = WithoutCache(engines["decoder"])
        return build_pipeline(self.manifest, engines, self.folder)


class WithoutCache:
    """A decoder that is given the whole text again at every step, and never a past."""

    name = "without cache"

    def __init__(self, decoder: Engine) -> None:
        self._decoder = decoder
        self._feed: dict[str, Any] = {}

    @property
    def inputs(self) -> Any:
        return self._decoder.inputs

    @property
    def outputs(self) -> Any:
        return self._decoder.outputs

    def infer(self, feed: Any) -> dict[str, Any]:
        if not self._feed:
            self._feed = dict(feed)
        else:
            for name in {"input_ids", "position_ids"} & self._feed.keys():
                self._feed[name] = np.concatenate([self._feed[name], feed[name]], axis=-1)
            for name in {"cross_attention_mask", "cross_row_mask"} & self._feed.keys():
                self._feed[name] = np.concatenate([self._feed[name], feed[name]], axis=1)
            masks = ("attention_mask", "decoder_attention_mask", "prefix_mask")
            self._feed |= {name: feed[name] for name in masks if name in feed}
        return self._decoder.infer(self._feed)


def exported(
    checkpoint: Path, folder: Path, model_class: Any = None, *, progress: Progress | None = None, **config: Any
) -> Exported:
    """A checkpoint through the export stage, into ``folder/out``."""
    work = StageWork(out=folder / "out", scratch=folder / "scratch", progress=progress or SilentProgress())
    work.out.mkdir(parents=True)
    run(ExportConfig(**config), StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, checkpoint)), work)
    return Exported(checkpoint, work.out, work.facts, model_class)


def photos(count: int = 3, seed: int = 7) -> list[NDArray[np.uint8]]:
    """Random RGB images of different sizes, none of them square."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (40 + 9 * index, 57, 3), dtype=np.uint8) for index in range(count)]


def ended(tokens: list[int], end: int = SEP) -> list[int]:
    """Tokens before the first end token."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


def check_vqa_answers(
    subject: Exported, questions: Sequence[str], asked: Callable[[Any, str], dict[str, Any]]
) -> list[list[int]]:
    """The answer to each question about its own photo, token for token: with a cache, without, and by ``generate`` of
    what ``asked`` makes of an image and a question."""
    pipeline, uncached = subject.pipeline, subject.without_cache()
    answers: list[list[int]] = pipeline.answer_ids(pipeline.encode_images(photos()), questions)
    assert answers == uncached.answer_ids(uncached.encode_images(photos()), questions)
    for image, question, answer, use_cache in zip(photos(), questions, answers, (True, False, True), strict=True):
        result = subject.model.generate(**asked(image, question), do_sample=False, use_cache=use_cache)
        assert answer == ended(result[0, 1:].tolist())
    return answers


def least_cosine(actual: Any, expected: Any) -> float:
    """The smallest cosine between rows (n, dim) of two sets of embeddings."""
    pair = (torch.as_tensor(np.asarray(values), dtype=torch.float64) for values in (actual, expected))
    return float(torch.nn.functional.cosine_similarity(*pair).min())
