"""BLIP-2: prompts and attention of the Q-Former and of OPT in both of its forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny_vlm
import transformers
from family_checkpoints import Exported
from tiny_blip2 import MODEL, config_of
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.runtime import Request

SUBJECTS = ["BLIP-2, OPT", "BLIP-2, OPT-350M"]
SIZES = [(40, 33), (30, 100), (20, 20)]


def test_prompts_are_the_processors(subject: Exported) -> None:
    processor = transformers.Blip2Processor(
        image_processor=BlipImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        num_query_tokens=5,
    )

    def expected(images: Sequence[Any], question: str) -> Any:
        text = f"Question: {question} Answer:"
        return processor(images=images[0] if images else None, text=text, return_tensors="pt")

    tiny_vlm.check_inputs(subject, expected, SIZES[:1])


def test_an_answer_beyond_opts_table_of_positions_is_refused(subject: Exported) -> None:
    table = subject.model.config.text_config.max_position_embeddings
    assert subject.manifest.generation.positions == table
    (prompt,) = subject.pipeline.tokenizer.encode(["Question: hello Answer:"])[0]
    for new in (table, table - len(prompt) + 2):
        with pytest.raises(VlmEdgeError, match=f"and {new} new ones: the decoder has {table} positions"):
            subject.pipeline.generate([Request("hello")], max_new_tokens=new)


def test_attention_is_found_by_role(subject: Exported) -> None:
    sites = subject.family.attention_sites(subject.model)
    roles = [(site.component, site.role) for site in sites]
    assert roles.count(("connector", AttentionRole.SELF)) == 2
    assert roles.count(("connector", AttentionRole.CROSS)) == 1
    assert roles.count(("decoder", AttentionRole.SELF)) == 2


def test_t5_is_refused() -> None:
    text = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    with pytest.raises(VlmEdgeError, match="language model is a T5ForConditionalGeneration"):
        FAMILIES["blip-2"].decoder(MODEL(config_of(300, text)))  # type: ignore[attr-defined]
