"""Is an exported graph the model? Every component against torch at several sizes, then all of them together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlm_edge.engines import load_engine
from vlm_edge.engines.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import ComponentExport
from vlm_edge.processing.manifest import Component, Generation, PipelineManifest

QUESTIONS = 6
"""Random questions about random images that the composed graphs have to answer as the model does."""
_HINT = "the graph computes something else than the model: report it with the model's config.json"


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference, and the same relative to the reference's largest magnitude."""

    absolute: float
    relative: float

    @staticmethod
    def between(actual: Array, expected: Array) -> Difference:
        """Infinite where shapes differ or a value is not finite."""
        if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
            return Difference(float("inf"), float("inf"))
        absolute = float(np.abs(actual - expected).max(initial=0.0))
        return Difference(absolute, absolute / max(float(np.abs(expected).max(initial=0.0)), 1e-30))


def load_graph(path: Path, component: Component) -> Engine:
    """One exported file on ONNX Runtime, on every core of this host."""
    return load_engine("onnxruntime", path, component, threads=os.cpu_count() or 1)


def check_component(name: str, component: ComponentExport, graph: Engine, tolerance: float) -> dict[str, float]:
    """The worst difference over three sets of sizes: the example's, one more of everything, the smallest of everything.

    Returns:
        ``max_abs_error`` and ``max_relative_error``.

    Raises:
        VlmEdgeError: a difference is above ``tolerance``, relative to the output's largest magnitude, or the model's
            own output is not finite.
    """
    worst = Difference(0.0, 0.0)
    for sizes in size_sets(component):
        feed = resized(component, sizes)
        with torch.no_grad():
            expected = component.module(*feed.values())
        actual = graph.infer({key: tensor.numpy() for key, tensor in feed.items()})
        for output, reference in zip(component.output_shapes, expected, strict=True):
            if not reference.isfinite().all():
                raise VlmEdgeError(
                    f"{name}: the model's own {output} is not finite at {sizes}",
                    "its weights hold NaN or infinity, or are too large: train or copy the checkpoint again",
                )
            difference = Difference.between(actual[output], reference.numpy())
            if difference.relative > tolerance:
                raise VlmEdgeError(
                    f"{name}: output {output} differs from torch by {difference.relative:.1e} (relative; "
                    f"{difference.absolute:.1e} absolute) at {sizes}; allowed: {tolerance:.0e}",
                    _HINT,
                )
            worst = max(worst, difference, key=lambda item: item.relative)
    return {"max_abs_error": worst.absolute, "max_relative_error": worst.relative}


def size_sets(component: ComponentExport) -> Iterator[dict[str, int]]:
    """Sizes of every dynamic dimension: the example's, one more of each, the least of each (1, or 0 if that is one)."""
    sizes = {
        dimension: component.example[name].shape[axis]
        for name, axes in component.dynamic.items()
        for axis, dimension in axes.items()
    }
    yield sizes
    yield {dimension: size + 1 for dimension, size in sizes.items()}
    yield {dimension: 0 if dimension in component.may_be_empty else 1 for dimension in sizes}


def resized(component: ComponentExport, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The example inputs at other sizes of the dynamic dimensions: repeated, then cut."""
    feed = {}
    for name, tensor in component.example.items():
        for axis, dimension in component.dynamic.get(name, {}).items():
            times = -(-sizes[dimension] // tensor.shape[axis])
            tensor = torch.cat([tensor] * max(times, 1), dim=axis).narrow(axis, 0, sizes[dimension])
        feed[name] = tensor.contiguous()
    return feed


def check_pipeline(
    model: nn.Module, manifest: PipelineManifest, graphs: Mapping[str, Engine], tolerance: float
) -> dict[str, float]:
    """All graphs together against the model's own ``generate`` (VQA) or ``forward`` (dual encoders), on random input.

    Returns:
        What was compared, for the record.

    Raises:
        VlmEdgeError: an answer differs in a token, or a similarity by more than ``tolerance``.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn((QUESTIONS, 3, manifest.image.height, manifest.image.width), generator=generator)
    lengths = torch.arange(3, 3 + QUESTIONS).clamp_max(manifest.text.max_length)
    config: Any = model.config
    ids = torch.randint(0, config.text_config.vocab_size, (QUESTIONS, int(lengths.max())), generator=generator)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    ids = torch.where(mask == 1, ids, manifest.text.pad_token_id)
    if manifest.generation is not None:
        return _check_answers(model, manifest.generation, graphs, (pixels, ids, mask), tolerance)
    return _check_similarities(model, manifest.logit_scale or 1.0, graphs, (pixels, ids, mask), tolerance)


def _check_answers(
    model: Any,
    generation: Generation,
    graphs: Mapping[str, Engine],
    inputs: tuple[Tensor, Tensor, Tensor],
    tolerance: float,
) -> dict[str, float]:
    """Questions of different lengths in one padded batch, against ``generate`` asked for each alone."""
    pixels, ids, mask = inputs
    features = graphs["vision_encoder"].infer({"pixel_values": pixels.numpy()})["image_features"]
    cross = graphs["text_encoder"].infer(
        {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "image_features": features}
    )
    answers = greedy_answers(graphs["decoder"], cross, mask.numpy(), generation)
    ties = 0
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        reference = model.generate(
            input_ids=ids[row : row + 1, :length],
            attention_mask=mask[row : row + 1, :length],
            pixel_values=pixels[row : row + 1],
            max_new_tokens=generation.max_new_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        wanted = reference.sequences[0, 1:].tolist()
        tie = _first_tie(answers[row], wanted, reference.logits, tolerance)
        ties += tie is not None
        if _until_end(answers[row][:tie], generation) != _until_end(wanted[:tie], generation):
            raise VlmEdgeError(
                f"composed graphs: question {row} is answered {answers[row]}, by generate {wanted} (token ids)", _HINT
            )
    return {"questions_equal": len(answers) - ties, "ties": ties}


def _first_tie(answer: Sequence[int], wanted: Sequence[int], logits: Sequence[Tensor], tolerance: float) -> int | None:
    """Where the answers part because the model itself all but can't choose: both tokens within ``tolerance``."""
    for step, (ours, theirs) in enumerate(zip(answer, wanted, strict=False)):
        if ours != theirs:
            row = logits[step][0]
            return step if row[theirs] - row[ours] <= tolerance * row.abs().max() else None
    return None


def greedy_answers(decoder: Engine, cross: Mapping[str, Array], mask: Array, generation: Generation) -> list[list[int]]:
    """``max_new_tokens`` ids a question, start token left out: prefill with an empty cache, then step by step."""
    caches = {
        name: np.empty((len(mask), int(spec.shape[1]), 0, int(spec.shape[3])), np.float32)
        for name, spec in decoder.inputs.items()
        if name.startswith("past_key_values.")
    }
    ids = np.full((len(mask), 1), generation.start_token_id, np.int64)
    answers: list[list[int]] = [[] for _ in range(len(mask))]
    for _ in range(generation.max_new_tokens):
        result = decoder.infer({"input_ids": ids, "attention_mask": mask, **cross, **caches})
        ids = result["logits"][:, -1:].argmax(axis=-1)
        caches = {name: result[name.replace("past_key_values", "present")] for name in caches}
        for answer, token in zip(answers, ids[:, 0].tolist(), strict=True):
            answer.append(token)
    return answers


def _until_end(tokens: Sequence[int], generation: Generation) -> list[int]:
    """Tokens before the first end token."""
    end = tokens.index(generation.eos_token_id) if generation.eos_token_id in tokens else len(tokens)
    return list(tokens[:end])


def _check_similarities(
    model: Any, scale: float, graphs: Mapping[str, Engine], inputs: tuple[Tensor, Tensor, Tensor], tolerance: float
) -> dict[str, float]:
    """The scaled cosines of all images and texts, against ``forward``'s logits_per_image."""
    pixels, ids, mask = inputs
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits_per_image
    images = graphs["vision_encoder"].infer({"pixel_values": pixels.numpy()})["image_embeds"]
    texts = graphs["text_encoder"].infer({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["text_embeds"]
    difference = Difference.between(scale * (images @ texts.T), expected.numpy())
    if difference.relative > tolerance:
        raise VlmEdgeError(
            f"composed graphs: similarities differ from the model's by {difference.relative:.1e} (relative); "
            f"allowed: {tolerance:.0e}",
            _HINT,
        )
    return {"similarities": expected.numel(), "max_relative_error": difference.relative}
