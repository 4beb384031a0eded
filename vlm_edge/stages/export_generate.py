"""Are a language model's graphs together the model? The runtime's answers about 0 to 2 images, against ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_edge.backends.base import Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import LoadedCheckpoint
from vlm_edge.families.parts.language_family import LanguageFamily
from vlm_edge.processing.image_inputs import picture_of
from vlm_edge.processing.images import read_images
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.picture import Picture
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.batches import batches
from vlm_edge.runtime.generate import GeneratePipeline, Request, prompt_text
from vlm_edge.stages.export_answers import Answer, token_limit

IMAGE_COUNTS = (1, 0, 2)
"""Images of each request that is compared."""
AT_ONCE = 2
"""Requests in a batch: the first is padded, and the one with most images is alone, which takes least memory."""


def torch_generation(
    loaded: LoadedCheckpoint, manifest: PipelineManifest, requests: Sequence[Request] | None = None
) -> list[Answer]:
    """``generate``'s answers to ``requests`` (default: :func:`random_requests`), asked for each alone."""
    assert manifest.generation is not None
    assert manifest.text is not None
    tokenizer = Tokenizer(loaded.folder, manifest.text)
    settings = {"max_new_tokens": token_limit(manifest.generation), "output_scores": True}
    return [
        Answer.of(reference_answer(loaded.model, loaded.family, manifest, tokenizer, request, **settings))
        for request in requests or random_requests(manifest, tokenizer)
    ]


def graph_generation(
    folder: Path,
    manifest: PipelineManifest,
    graphs: Mapping[str, Engine],
    requests: Sequence[Request] | None = None,
) -> list[list[int]]:
    """The runtime's answers to the same, padded in a batch and alone; ``folder`` has the tokenizer."""
    assert manifest.generation is not None
    assert manifest.text is not None
    tokenizer = Tokenizer(folder, manifest.text)
    pipeline = GeneratePipeline(manifest, graphs, tokenizer)
    limit = token_limit(manifest.generation)
    return [
        answer
        for part in batches(requests or random_requests(manifest, tokenizer), AT_ONCE)
        for answer in pipeline.generate_ids(part, max_new_tokens=limit)
    ]


def random_requests(manifest: PipelineManifest, tokenizer: Tokenizer) -> list[Request]:
    """A few random tokens about random images, four times as wide as high and the other way round: where images are
    cut into tiles, such shapes need few."""
    generator = np.random.default_rng(0)
    requests = []
    assert manifest.prompt is not None
    prompt = manifest.prompt
    for images in IMAGE_COUNTS:
        pictures = []
        for index in range(images):
            side = int(generator.integers(24, 40))
            size = (side, 4 * side) if index % 2 else (4 * side, side)
            pictures.append(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        shown = [picture_of(image, manifest.image, prompt) for image in pictures]

        def encode(words: str, shown: list[Picture] = shown) -> object:
            return tokenizer.encode([prompt_text(prompt, words, shown)], special_tokens=prompt.special_tokens)

        requests.append(Request(random_text(tokenizer, 5 + images, generator, encode, prompt.image_token), pictures))
    return requests


def random_text(
    tokenizer: Tokenizer,
    tokens: int,
    generator: np.random.Generator,
    encode: Callable[[str], object],
    without: str = "",
) -> str:
    """A text of random tokens, fewer where ``encode`` refuses it as longer than what the model reads; the text
    ``without`` is left out."""
    ids = generator.integers(0, tokenizer.vocabulary_size, tokens).tolist()
    while True:
        words = tokenizer.decode(ids).replace(without, "") if without else tokenizer.decode(ids)
        try:
            encode(words)
        except VlmEdgeError:
            if not ids:
                raise
            ids.pop()
        else:
            return words


def reference_answer(
    model: Any, family: Any, manifest: PipelineManifest, tokenizer: Tokenizer, request: Request, **settings: Any
) -> Any:
    """``generate``'s result for one request, greedily, from what the runtime makes of its images and text."""
    assert isinstance(family, LanguageFamily)
    assert manifest.prompt is not None
    assert manifest.generation is not None
    prompt = manifest.prompt
    pictures = [picture_of(image, manifest.image, prompt) for image in read_images(request.images, manifest.image)]
    whole = prompt_text(prompt, request.question, pictures, request.prompt)
    ids, mask = map(torch.from_numpy, tokenizer.encode([whole], special_tokens=prompt.special_tokens))
    if prompt.instruction and pictures:
        instruction = Tokenizer(tokenizer.folder, prompt.instruction).encode([request.question])
        settings["instruction"] = tuple(map(torch.from_numpy, instruction))
    inputs = {"input_ids": ids, "attention_mask": mask} | (family.model_inputs(pictures) if pictures else {})
    with torch.no_grad():
        return family.reference(
            model,
            inputs,
            image_token_id=prompt.image_token_id,
            eos_token_id=sorted(manifest.generation.eos_token_ids),
            pad_token_id=manifest.generation.pad_token_id,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            **settings,
        )
