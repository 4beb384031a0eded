"""BLIP-2 with a T5 through export and the runtime, against transformers' generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_checkpoints import DEC, Exported, check_vqa_answers
from tiny_blip2_t5 import TOKENS, checkpoint_of
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.families import FAMILIES, family_for
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.blip2 import Blip2
from vlm_edge.families.blip2_t5 import Blip2T5
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.families.parts.t5 import RelativeBias
from vlm_edge.families.table import _by_name
from vlm_edge.runtime import VqaPipeline

SUBJECTS = ["BLIP-2, T5"]
QUESTIONS = ["what color is the circle", "is it blue", "how many"]


def test_thirty_two_tokens_are_generates(subject: Exported, families_page: Any) -> None:
    """Blip2Processor's input_ids for one image: the queries' places, then the tokenized prompt."""
    assert isinstance(subject.pipeline, VqaPipeline)
    tokenizer = transformers.AutoTokenizer.from_pretrained(subject.checkpoint)
    processor = BlipImageProcessorPil.from_pretrained(subject.checkpoint)

    def asked(image: Any, question: str) -> dict[str, Any]:
        prompt = tokenizer(f"Question: {question} Answer:", return_tensors="pt").input_ids
        ids = torch.cat([torch.full((1, 5), DEC), prompt], dim=1)
        return {**processor(image, return_tensors="pt"), "input_ids": ids, "max_new_tokens": TOKENS}

    answers = check_vqa_answers(subject, QUESTIONS, asked)
    assert len({token for row in answers for token in row}) >= 8
    families_page("one image a question; the prompt is `Question: .. Answer:`", tokens=answers)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_components_are_forward(tied: bool, tmp_path: Path) -> None:
    """Padded questions; answers longer than the farthest distance that has a bucket of its own."""
    loaded = load_checkpoint(checkpoint_of(tmp_path, tie_word_embeddings=tied))
    model: Any = loaded.model
    parts = loaded.family.components(model, loaded.family.image_processing(tmp_path))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn((2, 3, 32, 32), generator=generator)
    ids = torch.randint(6, 100, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    answer = torch.randint(6, 100, (2, 20), generator=generator)
    (features,) = parts["vision_encoder"].module(pixels)
    seen, *cross = parts["text_encoder"].module(ids, mask, features)
    past = [tensor[:, :, :0] for name, tensor in parts["decoder"].example.items() if name.startswith("past_")]
    ones = torch.ones_like(answer)
    logits, *_ = parts["decoder"].module(answer, ones, seen, *cross, *past)
    expected = model(
        pixel_values=pixels,
        input_ids=torch.cat([torch.full((2, 5), DEC), ids], dim=1),
        attention_mask=torch.cat([torch.ones(2, 5, dtype=torch.int64), mask], dim=1),
        decoder_input_ids=answer,
    ).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    first, *present = parts["decoder"].module(answer[:, :15], ones[:, :15], seen, *cross, *past)
    rest, *_ = parts["decoder"].module(answer[:, 15:], ones, seen, *cross, *present)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("both_ways", [True, False])
def test_biases_are_t5s(both_ways: bool) -> None:
    """At distances of up to 300 tokens, with the published 32 buckets up to 128."""
    config = transformers.T5Config(d_model=8, d_kv=4, num_heads=3, is_decoder=not both_ways)
    module = transformers.models.t5.modeling_t5.T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    ours = RelativeBias(module, both_ways)
    torch.testing.assert_close(ours(300, 0), module.compute_bias(300, 300))
    torch.testing.assert_close(ours(2, 70), module.compute_bias(2, 72, past_seen_tokens=70))


def test_attention_sites_are_the_q_formers_and_the_decoders_cross_attention(tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint_of(tmp_path))
    sites = loaded.family.attention_sites(loaded.model)
    crosses = [site.component for site in sites if site.role is AttentionRole.CROSS]
    assert crosses == ["vision_encoder", "decoder", "decoder"] or crosses == ["decoder", "decoder", "vision_encoder"]


def test_the_config_says_which_of_two_families_a_checkpoint_is() -> None:
    (architecture,) = FAMILIES["blip-2-t5"].architectures
    assert family_for(architecture, {"text_config": {"model_type": "t5"}}) is FAMILIES["blip-2-t5"]
    assert family_for(architecture, {"text_config": {"model_type": "opt"}}) is FAMILIES["blip-2"]
    assert family_for(architecture) is FAMILIES["blip-2"]

    class Other(Blip2):
        name = "other"

    with pytest.raises(ValueError, match="'other' or one of its architectures is registered twice"):
        _by_name([Blip2T5(), Blip2(), Other()])
