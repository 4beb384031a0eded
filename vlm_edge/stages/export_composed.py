"""Are the exported graphs together the model? The pipeline on real preprocessing, against transformers' own answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_edge.engines.base import Array, Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.checkpoint import LoadedCheckpoint
from vlm_edge.processing.images import preprocess
from vlm_edge.processing.manifest import Generation, PipelineKind, PipelineManifest
from vlm_edge.processing.text import Ids, TextEncoder
from vlm_edge.runtime.greedy import GreedyDecoder
from vlm_edge.stages.export_check import REPORT_HINT, Difference

QUESTIONS = 6
"""Random texts about random images that the composed graphs have to answer as the model does."""
MAX_TOKENS = 32
"""Most tokens that are generated for the comparison."""


@dataclass(frozen=True)
class Inputs:
    """Real preprocessing of random images and texts: what both sides are given.

    pixel_values (QUESTIONS, 3, height, width) float32; input_ids and attention_mask (QUESTIONS, tokens) int64.
    """

    pixel_values: Array
    input_ids: Ids
    attention_mask: Ids

    def row(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """One question as torch tensors, without its padding."""
        length = int(self.attention_mask[index].sum())
        part = slice(index, index + 1)
        return Inputs(
            self.pixel_values[part], self.input_ids[part, :length], self.attention_mask[part, :length]
        ).tensors()

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All questions as torch tensors."""
        pixels, ids, mask = map(torch.from_numpy, (self.pixel_values, self.input_ids, self.attention_mask))
        return pixels, ids, mask


def check_pipeline(
    loaded: LoadedCheckpoint, manifest: PipelineManifest, graphs: Mapping[str, Engine], tolerance: float
) -> dict[str, float]:
    """All graphs together against the family's ``reference``, on random images and texts.

    Returns:
        What was compared, for the record.

    Raises:
        VlmEdgeError: an answer differs in a token, or a similarity, embedding or logit by more than ``tolerance``.
    """
    inputs = random_inputs(loaded, manifest)
    with torch.no_grad():
        return CHECKS[manifest.pipeline](loaded, manifest, graphs, inputs, tolerance)


def random_inputs(loaded: LoadedCheckpoint, manifest: PipelineManifest) -> Inputs:
    """Images of random sizes, and texts of random tokens, none of them special, through the manifest's processing."""
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (*generator.integers(16, 96, 2), 3), dtype=np.uint8) for _ in range(QUESTIONS)]
    pixels = preprocess(images, manifest.image)
    if manifest.text is None:
        return Inputs(pixels, np.zeros((QUESTIONS, 0), np.int64), np.zeros((QUESTIONS, 0), np.int64))
    encoder = TextEncoder(loaded.folder, manifest.text)
    texts = [
        encoder.decode(generator.integers(0, encoder.vocabulary_size, 3 + index).tolist()) for index in range(QUESTIONS)
    ]
    return Inputs(pixels, *encoder.encode(texts))


def _check_vqa(
    loaded: LoadedCheckpoint,
    manifest: PipelineManifest,
    graphs: Mapping[str, Engine],
    inputs: Inputs,
    tolerance: float,
) -> dict[str, float]:
    """Questions of different lengths in one padded batch, against ``generate`` asked for each alone."""
    features = graphs["vision_encoder"].infer({"pixel_values": inputs.pixel_values})["image_features"]
    cross = graphs["text_encoder"].infer(
        {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask, "image_features": features}
    )
    return _check_answers(loaded, manifest, graphs["decoder"], cross, inputs, tolerance)


def _check_captions(
    loaded: LoadedCheckpoint,
    manifest: PipelineManifest,
    graphs: Mapping[str, Engine],
    inputs: Inputs,
    tolerance: float,
) -> dict[str, float]:
    cross = graphs["vision_encoder"].infer({"pixel_values": inputs.pixel_values})
    return _check_answers(loaded, manifest, graphs["decoder"], cross, inputs, tolerance)


def _check_answers(
    loaded: LoadedCheckpoint,
    manifest: PipelineManifest,
    decoder: Engine,
    cross: Mapping[str, Array],
    inputs: Inputs,
    tolerance: float,
) -> dict[str, float]:
    """Greedy tokens of all rows together, against ``generate`` for each row alone."""
    generation = manifest.generation
    assert generation is not None
    limit = min(generation.max_new_tokens, MAX_TOKENS)
    answers = GreedyDecoder(decoder, generation).decode(
        cross, QUESTIONS, attention_mask=inputs.attention_mask, max_new_tokens=limit
    )
    ties = 0
    for index, answer in enumerate(answers):
        reference = loaded.family.reference(
            loaded.model,
            *inputs.row(index),
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        ties += parts_at_tie(index, answer, reference, generation, limit, tolerance)
    return {"questions_equal": len(answers) - ties, "ties": ties}


def parts_at_tie(
    index: int, answer: Sequence[int], reference: Any, generation: Generation, limit: int, tolerance: float
) -> bool:
    """Whether one answer parts from ``generate``'s (``reference``, with its logits) where the model can't choose.

    Raises:
        VlmEdgeError: it parts from it anywhere else.
    """
    wanted = reference.sequences[0, -len(reference.logits) :].tolist()
    ended = answer if len(answer) == limit else [*answer, _end_of(wanted, len(answer), generation)]
    tie = _first_tie(ended, wanted, reference.logits, tolerance)
    if list(answer[:tie]) != _until_end(wanted, generation)[:tie]:
        raise VlmEdgeError(
            f"composed graphs: question {index} is answered {answer}, by generate {wanted} (token ids)", REPORT_HINT
        )
    return tie is not None


def _end_of(wanted: Sequence[int], length: int, generation: Generation) -> int:
    """The end token behind an answer of ``length`` tokens: whichever the reference has there, else the first."""
    there = wanted[length] if length < len(wanted) else generation.eos_token_id
    return there if there in generation.eos_token_ids else generation.eos_token_id


def _first_tie(answer: Sequence[int], wanted: Sequence[int], logits: Sequence[Tensor], tolerance: float) -> int | None:
    """Where the answers part because the model itself all but can't choose: both tokens within ``tolerance``."""
    for step, (ours, theirs) in enumerate(zip(answer, wanted, strict=False)):
        if ours != theirs:
            row = logits[step][0]
            return step if row[theirs] - row[ours] <= tolerance * row.abs().max() else None
    return None


def _until_end(tokens: Sequence[int], generation: Generation) -> list[int]:
    """Tokens before the first end token."""
    ends = [place for place, token in enumerate(tokens) if token in generation.eos_token_ids]
    return list(tokens[: min(ends, default=len(tokens))])


def _check_similarities(
    loaded: LoadedCheckpoint,
    manifest: PipelineManifest,
    graphs: Mapping[str, Engine],
    inputs: Inputs,
    tolerance: float,
) -> dict[str, float]:
    """The scaled cosines of all images and texts."""
    images = graphs["vision_encoder"].infer({"pixel_values": inputs.pixel_values})["image_embeds"]
    texts = graphs["text_encoder"].infer({"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask})
    logits = (manifest.logit_scale or 1.0) * (images @ texts["text_embeds"].T) + (manifest.logit_bias or 0.0)
    expected = loaded.family.reference(loaded.model, *inputs.tensors())
    return {"similarities": expected.numel()} | _checked("similarities", logits, expected, tolerance)


def _check_embeddings(
    loaded: LoadedCheckpoint,
    manifest: PipelineManifest,
    graphs: Mapping[str, Engine],
    inputs: Inputs,
    tolerance: float,
) -> dict[str, float]:
    """The vision tower's logits where it has a head, else its embeddings."""
    output = "logits" if manifest.labels else "image_embeds"
    actual = graphs["vision_encoder"].infer({"pixel_values": inputs.pixel_values})[output]
    expected = loaded.family.reference(loaded.model, *inputs.tensors())
    return {"images": len(actual)} | _checked(output, actual, expected, tolerance)


def _check_pairs(
    loaded: LoadedCheckpoint,
    manifest: PipelineManifest,
    graphs: Mapping[str, Engine],
    inputs: Inputs,
    tolerance: float,
) -> dict[str, float]:
    """The fusion's logits for each image with its own text; and, where there are embeddings, their cosines."""
    vision = graphs["vision_encoder"].infer({"pixel_values": inputs.pixel_values})
    text = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
    logits = graphs["fusion"].infer(text | {"image_features": vision["image_features"]})["logits"]
    assert logits.shape == (QUESTIONS, len(manifest.labels or ()))
    expected = loaded.family.reference(loaded.model, *inputs.tensors())
    facts = {"pairs": len(logits)} | _checked("logits", logits, expected, tolerance)
    if "text_encoder" not in graphs:
        return facts
    cosines = vision["image_embeds"] @ graphs["text_encoder"].infer(text)["text_embeds"].T
    expected = loaded.family.reference(loaded.model, *inputs.tensors(), use_itm_head=False)
    similarities = _checked("similarities", cosines, expected, tolerance)
    return facts | {"max_relative_error": max(facts["max_relative_error"], similarities["max_relative_error"])}


def _checked(what: str, actual: Array, expected: Tensor, tolerance: float) -> dict[str, float]:
    difference = Difference.between(actual, expected.numpy())
    if difference.relative > tolerance:
        raise VlmEdgeError(
            f"composed graphs: {what} differ from the model's by {difference.relative:.1e} (relative); "
            f"allowed: {tolerance:.0e}",
            REPORT_HINT,
        )
    return {"max_relative_error": difference.relative}


Check = Callable[[LoadedCheckpoint, PipelineManifest, Mapping[str, Engine], Inputs, float], dict[str, float]]
CHECKS: dict[PipelineKind, Check] = {
    "vqa": _check_vqa,
    "captioning": _check_captions,
    "dual_encoder": _check_similarities,
    "embedding": _check_embeddings,
    "matching": _check_pairs,
}
