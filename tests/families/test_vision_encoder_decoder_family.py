"""TrOCR, ViT-GPT2, ViT-BERT and ViT-mBART through export and the runtime, against transformers' generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_checkpoints import (
    CLS,
    PAD,
    POSITIONS,
    VOCABULARY,
    Exported,
    change_json,
    ended,
    photos,
)
from tiny_encoder_decoder import CASES, LENGTH, TOKENS, Case, checkpoint_of, vit
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import CaptioningPipeline
from vlm_edge.surgery.heads import prune_heads

NAMES = {"TrOCR": "trocr", "ViT-GPT2": "gpt2"}
SUBJECTS = list(NAMES)
FAMILY = FAMILIES["vision-encoder-decoder"]


@pytest.fixture(scope="module")
def captioner(subject: Exported) -> Any:
    """The case, its checkpoint, its graphs and what the export measured."""
    return CASES[NAMES[subject.name]], subject.checkpoint, subject.folder, subject.facts


def generated(source: Path, case: Case, **settings: Any) -> list[list[int]]:
    """transformers' own tokens of every photo, through its own processor, until the end token."""
    model: Any = transformers.VisionEncoderDecoderModel.from_pretrained(source).eval()
    if case is CASES["trocr sinusoidal"]:  # from_pretrained (5.23) leaves its computed positions without data
        positions = model.decoder.model.decoder.embed_positions
        positions.weights = positions.get_embedding(LENGTH + PAD + 1, 32, PAD)
    pixels = case.processor.from_pretrained(source)(photos(), return_tensors="pt")["pixel_values"]
    rows = []
    for row in model.generate(pixel_values=pixels, do_sample=False, **settings)[:, 1:].tolist():
        rows.append(ended(row))
    return rows


def test_thirty_two_tokens_are_generates(captioner: Any, subject: Exported, families_page: Any) -> None:
    case, source, _, facts = captioner
    assert isinstance(subject.pipeline, CaptioningPipeline)
    answers = subject.pipeline.caption_ids(photos())
    assert answers == generated(source, case) == generated(source, case, use_cache=False)
    assert answers == subject.without_cache().caption_ids(photos())
    families_page("decoders: TrOCR, GPT-2, BERT and mBART; encoders: ViT, DeiT and BEiT", tokens=answers)
    assert facts["composed"]["questions_equal"] == 6


@pytest.mark.parametrize("name", ["trocr sinusoidal", "bert", "mbart"])
@torch.no_grad()
def test_other_decoders_write_what_generate_does(name: str, tmp_path: Path) -> None:
    """The components as torch modules: these decoders' graphs are made as those of the two that are exported here."""
    source = checkpoint_of(tmp_path, CASES[name])
    loaded = load_checkpoint(source)
    sites = [site for site in FAMILY.attention_sites(loaded.model) if site.component == "decoder"]
    assert len(sites) == CASES[name].sites
    assert len(FAMILY.attention_sites(loaded.model)) == len(sites) + 2
    components = FAMILY.components(loaded.model, FAMILY.image_processing(source))
    pixels = CASES[name].processor.from_pretrained(source)(photos(), return_tensors="pt")["pixel_values"]
    memory = components["vision_encoder"].module(pixels)
    past = [torch.empty(3, 4, 0, 8) for name in components["decoder"].example if name.startswith("past_key_values.")]
    tokens = torch.full((3, 1), CLS)
    rows: list[list[int]] = [[], [], []]
    for step in range(TOKENS):
        seen = torch.ones((3, step + 1), dtype=torch.int64)
        logits, *past = components["decoder"].module(tokens, seen, *memory, *past)
        tokens = logits[:, -1:].argmax(-1)
        for row, token in zip(rows, tokens[:, 0].tolist(), strict=True):
            row.append(token)
    assert [ended(row) for row in rows] == generated(source, CASES[name])


def test_the_manifest_names_what_cross_attention_reads(captioner: Any) -> None:
    _, _, folder, _ = captioner
    manifest = read_manifest(folder)
    vision, decoder = manifest.components["vision_encoder"], manifest.components["decoder"]
    crosses = [name for name in decoder.inputs if name.startswith("cross_key_values.")]
    assert crosses == list(vision.outputs)
    assert [vision.outputs[name].shape[2] for name in crosses] == [decoder.inputs[crosses[0]].shape[2]] * 4
    assert decoder.outputs["present.0.key"].shape[2] == "past + new"


def test_heads_of_its_decoder_can_be_pruned(captioner: Any) -> None:
    case, source, _, _ = captioner
    loaded = load_checkpoint(source)
    sites = [site for site in FAMILY.attention_sites(loaded.model) if site.component == "decoder"]
    assert len(sites) == case.sites
    cross = [site for site in sites if site.role is AttentionRole.CROSS]
    assert len(cross) == 2
    masked: Any = load_checkpoint(source).model
    out = masked.get_submodule(cross[0].out)
    of_inputs = out.weight.data if isinstance(out, torch.nn.Linear) else out.weight.data.T  # GPT-2's lies the other way
    of_inputs[:, : cross[0].head_dim] = 0
    prune_heads(loaded.model, cross[0], [1, 2, 3])
    image = FAMILY.image_processing(source)
    pruned, zeroed = (FAMILY.components(model, image) for model in (loaded.model, masked))
    pixels = pruned["vision_encoder"].example["pixel_values"]
    ids = torch.tensor([[2, 9, 11], [2, 14, 12]])
    with torch.no_grad():
        logits = []
        for components in (pruned, zeroed):
            memory = components["vision_encoder"].module(pixels)
            past = [tensor[:, :, :0] for name, tensor in components["decoder"].example.items() if "past" in name]
            logits.append(components["decoder"].module(ids, torch.ones_like(ids), *memory, *past)[0])
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


def test_no_text_could_begin_or_end(captioner: Any, tmp_path: Path) -> None:
    _, source, _, _ = captioner
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(VlmEdgeError, match="no decoder_start_token_id or eos_token_id"):
        FAMILY.generation(tmp_path)


def test_parts_that_are_not_known_are_named(tmp_path: Path) -> None:
    other = Case(vit(), transformers.OPTConfig(vocab_size=VOCABULARY), ViTImageProcessorPil, 0)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(other.encoder, other.decoder)
    with pytest.raises(VlmEdgeError, match="decoder: a OPTForCausalLM; known: BertLMHeadModel, GPT2LMHeadModel"):
        FAMILY.build(config.to_dict())
    swin = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.SwinConfig(), CASES["gpt2"].decoder
    )
    with pytest.raises(VlmEdgeError, match="encoder: 'swin' can't be exported; known: beit, deit, vit"):
        FAMILY.build(swin.to_dict())
    source = checkpoint_of(tmp_path, CASES["gpt2"])
    change_json(source / "preprocessor_config.json", image_processor_type="DonutImageProcessor")
    with pytest.raises(VlmEdgeError, match="DonutImageProcessorPil"):
        FAMILY.image_processing(source)
    assert POSITIONS < LENGTH
