"""Are a language model's graphs together the model? The runtime's answers about 0 to 2 images, against ``generate``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_edge.families.checkpoint import LoadedCheckpoint
from vlm_edge.families.generate import LanguageFamily
from vlm_edge.processing.images import read_image
from vlm_edge.processing.manifest import PipelineManifest
from vlm_edge.processing.pictures import picture_of
from vlm_edge.processing.text import TextEncoder
from vlm_edge.runtime.batches import batches
from vlm_edge.runtime.generate import GeneratePipeline, Request, prompt_text
from vlm_edge.stages.export_check import OneAtATime
from vlm_edge.stages.export_composed import MAX_TOKENS, parts_at_tie

IMAGE_COUNTS = (1, 0, 2)
"""Images of each request that is compared."""
AT_ONCE = 2
"""Requests in a batch: the first is padded, and the one with most images is alone, which takes least memory."""


def check_generation(
    loaded: LoadedCheckpoint, manifest: PipelineManifest, graphs: OneAtATime, tolerance: float
) -> dict[str, float]:
    """Requests about unequally many images, padded in a batch and alone, against ``generate`` asked for each alone.

    The graphs are dropped once they have answered, so that their weights are not in memory beside what torch needs.

    Returns:
        What was compared, for the record.

    Raises:
        VlmEdgeError: an answer differs in a token that the model itself is sure of.
    """
    assert manifest.generation is not None
    assert manifest.text is not None
    text = TextEncoder(loaded.folder, manifest.text)
    limit = min(manifest.generation.max_new_tokens, MAX_TOKENS)
    requests = random_requests(manifest, text)
    pipeline = GeneratePipeline(manifest, graphs.engines, text)
    answers = [
        answer for part in batches(requests, AT_ONCE) for answer in pipeline.generate_ids(part, max_new_tokens=limit)
    ]
    graphs.release()
    ties = 0
    for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        reference = reference_answer(
            loaded.model, loaded.family, manifest, text, request, max_new_tokens=limit, output_logits=True
        )
        ties += parts_at_tie(index, answer, reference, manifest.generation, limit, tolerance)
    return {"questions_equal": len(requests) - ties, "ties": ties}


def random_requests(manifest: PipelineManifest, text: TextEncoder) -> list[Request]:
    """A few random tokens about random images, four times as wide as high and the other way round: where images are
    cut into tiles, such shapes need few."""
    generator = np.random.default_rng(0)
    requests = []
    for images in IMAGE_COUNTS:
        pictures = []
        for index in range(images):
            side = int(generator.integers(24, 40))
            size = (side, 4 * side) if index % 2 else (4 * side, side)
            pictures.append(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        question = text.decode(generator.integers(0, text.vocabulary_size, 5 + images).tolist())
        assert manifest.prompt is not None
        requests.append(Request(question.replace(manifest.prompt.image_token, ""), pictures))
    return requests


def reference_answer(
    model: Any, family: Any, manifest: PipelineManifest, text: TextEncoder, request: Request, **settings: Any
) -> Any:
    """``generate``'s result for one request, greedily, from what the runtime makes of its images and text."""
    assert isinstance(family, LanguageFamily)
    assert manifest.prompt is not None
    assert manifest.generation is not None
    prompt = manifest.prompt
    pictures = [picture_of(read_image(image), manifest.image, prompt) for image in request.images]
    whole = prompt_text(prompt, request.question, pictures, request.prompt)
    ids, mask = map(torch.from_numpy, text.encode([whole], special_tokens=prompt.special_tokens))
    if prompt.instruction and pictures:
        instruction = TextEncoder(text.folder, prompt.instruction).encode([request.question])
        settings["instruction"] = tuple(map(torch.from_numpy, instruction))
    inputs: dict[str, Tensor] = family.model_inputs(pictures) if pictures else {"pixel_values": torch.zeros(0)}
    with torch.no_grad():
        return family.reference(
            model,
            inputs.pop("pixel_values"),
            ids,
            mask,
            **inputs,
            image_token_id=prompt.image_token_id,
            eos_token_id=sorted(manifest.generation.eos_token_ids),
            pad_token_id=manifest.generation.pad_token_id,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            **settings,
        )
