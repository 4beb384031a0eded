"""What the tests of language-model families share: random weights that talk, exported once, held to ``generate``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_checkpoints import Exported
from PIL import Image
from torch import nn

from vlm_edge.processing.image_inputs import picture_of
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime import Request
from vlm_edge.runtime.generate import prompt_text
from vlm_edge.stages.export_generate import reference_answer

NEW_TOKENS = 32
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
"""A small language model, with the ids of byte_tokenizer."""
VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@torch.no_grad()
def randomize(model: nn.Module, seed: int, gain: float = 2.0) -> None:
    """Draw every weight anew. ``gain`` makes layers loud beside the embedding that they are added to, so that what a
    model says depends on all that it read; norms and biases are random too, so that none can be lost unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in drawn:
                continue
            drawn.add(id(parameter))
            if parameter.ndim <= 1:
                norm = name == "weight" and not type(module).__name__.startswith("Gemma")
                parameter.normal_(1.0 if norm else 0.0, 0.2, generator=generator)
            elif isinstance(module, nn.Embedding):
                scale = getattr(module, "scalar_embed_scale", 1.0)  # Gemma's forward multiplies by it
                parameter.normal_(0.0, 1.0 / scale, generator=generator)
            else:
                parameter.normal_(0.0, gain / math.sqrt(parameter[0].numel()), generator=generator)


def write_checkpoint(folder: Path, model: Any, processor: Mapping[str, Any], seed: int = 0) -> None:
    """``model`` with random weights as save_pretrained writes it, and its image processor's settings."""
    randomize(model, seed)
    model.generation_config.max_new_tokens = NEW_TOKENS
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def photos(seed: int, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    """RGB images of given widths and heights: coloured patches with soft edges."""
    generator = np.random.default_rng(seed)
    return [
        Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size in sizes
    ]


def generated(subject: Exported, request: Request, **settings: Any) -> list[int]:
    """What transformers' ``generate`` answers to one request: its tokens before the first end token."""
    manifest = subject.manifest
    text = Tokenizer(subject.folder, manifest.text)
    result = reference_answer(
        subject.model,
        subject.family,
        manifest,
        text,
        request,
        max_new_tokens=NEW_TOKENS,
        output_scores=True,
        **settings,
    )
    tokens = result.sequences[0, -len(result.scores) :].tolist()
    ends = [place for place, token in enumerate(tokens) if token in manifest.generation.eos_token_ids]
    return list(tokens[: min(ends, default=len(tokens))])


def check_answers(subject: Exported, requests: Sequence[Request], distinct: int = 8) -> list[list[int]]:
    """All requests in one batch, each token for token as ``generate`` answers it alone, with a cache and without.

    ``distinct``: at least so many different tokens in all, so that a model that repeats itself proves nothing.
    """
    answers: list[list[int]] = subject.pipeline.generate_ids(requests, max_new_tokens=NEW_TOKENS)
    assert answers == [generated(subject, request) for request in requests]
    whole = max(range(len(answers)), key=lambda index: len(answers[index]))
    assert answers[whole] == generated(subject, requests[whole], use_cache=False)
    (again,) = subject.without_cache().generate_ids([requests[whole]], max_new_tokens=NEW_TOKENS)
    assert answers[whole] == again
    assert len({token for answer in answers for token in answer}) >= distinct
    assert len({tuple(answer) for answer in answers}) >= len(answers) - 1  # two may end at once
    assert subject.facts["composed"] == {"questions_equal": 3, "ties": 0}
    return answers


def check_processor(subject: Exported, processor: Any, sizes: Sequence[tuple[int, int]]) -> None:
    """Prompts about 0 to 3 images, token for token, and pixels, as ``processor.apply_chat_template`` makes them."""

    def expected(images: Sequence[Any], question: str) -> Any:
        content = [{"type": "image", "image": image} for image in images]
        return processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    check_inputs(subject, expected, sizes)


def check_inputs(
    subject: Exported, expected: Callable[[Sequence[Any], str], Any], sizes: Sequence[tuple[int, int]], fewest: int = 0
) -> None:
    """Prompts about ``fewest`` images and more, token for token, and their pixels, against ``expected``'s."""
    manifest = subject.pipeline.manifest
    assert manifest.prompt is not None
    assert manifest.text is not None
    text = Tokenizer(subject.folder, manifest.text)
    images = photos(1, sizes)
    for count in range(fewest, len(images) + 1):
        for question in ("what is this?", "  Two words "):
            wanted = expected(images[:count], question)
            pictures = [picture_of(np.asarray(image), manifest.image, manifest.prompt) for image in images[:count]]
            whole = prompt_text(manifest.prompt, question, pictures)
            ids, _ = text.encode([whole], special_tokens=manifest.prompt.special_tokens)
            assert ids.tolist() == wanted["input_ids"].tolist()
            for name, values in (subject.family.model_inputs(pictures) if count else {}).items():
                assert values.shape == wanted[name].shape, name
                step = manifest.image.rescale_factor / min(manifest.image.std)
                assert float((values - torch.as_tensor(wanted[name])).abs().max()) <= step, name
