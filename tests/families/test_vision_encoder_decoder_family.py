"""TrOCR, ViT-GPT2, ViT-BERT and ViT-mBART through export and the runtime, against transformers' generate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_checkpoints import (
    CLS,
    PAD,
    POSITIONS,
    SEP,
    TOWER,
    VOCABULARY,
    change_json,
    exported,
    photos,
    write_checkpoint,
)
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.checkpoint import load_checkpoint
from vlm_edge.numerics.attention_surgery import prune_heads
from vlm_edge.processing.manifest import read_manifest
from vlm_edge.runtime import CaptioningPipeline, load_pipeline

FAMILY = FAMILIES["vision-encoder-decoder"]
TOKENS = 32
LENGTH = 40
"""Positions of the decoders: TOKENS and the start token have to fit."""
SHARED = {"vocab_size": VOCABULARY, "bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD,
          "is_decoder": True, "add_cross_attention": True, "max_position_embeddings": LENGTH}  # fmt: skip
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}


@dataclass(frozen=True)
class Case:
    """An encoder's and a decoder's config, the processor, and the attention sites of two decoder layers."""

    encoder: Any
    decoder: Any
    processor: Any
    sites: int


def vit(**changes: Any) -> Any:
    return transformers.ViTConfig(**TOWER, image_size=32, patch_size=8, **changes)


CASES = {
    "trocr": Case(
        transformers.DeiTConfig(**TOWER | {"hidden_size": 24}, image_size=32, patch_size=8),
        transformers.TrOCRConfig(**SHARED, **BART, cross_attention_hidden_size=24, layernorm_embedding=True),
        DeiTImageProcessorPil, 4,
    ),
    "trocr sinusoidal": Case(
        vit(), transformers.TrOCRConfig(**SHARED, **BART, cross_attention_hidden_size=32, scale_embedding=True,
                                        use_learned_position_embeddings=False, layernorm_embedding=False),
        ViTImageProcessorPil, 4,
    ),
    "gpt2": Case(
        vit(hidden_act="gelu_new"), transformers.GPT2Config(**SHARED, n_embd=24, n_layer=2, n_head=4, n_inner=40),
        ViTImageProcessorPil, 0,
    ),
    "bert": Case(vit(), transformers.BertConfig(**SHARED, **TOWER), ViTImageProcessorPil, 4),
    "mbart": Case(vit(), transformers.MBartConfig(**SHARED, **BART), ViTImageProcessorPil, 4),
}  # fmt: skip


@pytest.fixture(scope="module", params=["trocr", "gpt2"])
def captioner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The case, its checkpoint, its graphs and what the export measured."""
    case = CASES[request.param]
    source = write(tmp_path_factory.mktemp("source"), case)
    return (case, source, *exported(source, tmp_path_factory.mktemp("graphs")))


def write(folder: Path, case: Case, **generation: Any) -> Path:
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(case.encoder, case.decoder)
    processor = {
        "image_processor_type": case.processor.__name__.removesuffix("Pil"),
        "size": {"height": 32, "width": 32},
        "crop_size": {"height": 32, "width": 32},
    }
    settings = {"decoder_start_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD, "max_new_tokens": TOKENS}
    write_checkpoint(
        folder, transformers.VisionEncoderDecoderModel(config), processor, generation=settings | generation
    )
    return folder


def generated(source: Path, case: Case, **settings: Any) -> list[list[int]]:
    """transformers' own tokens of every photo, through its own processor, until the end token."""
    model: Any = transformers.VisionEncoderDecoderModel.from_pretrained(source).eval()
    if case is CASES["trocr sinusoidal"]:  # from_pretrained (5.23) leaves its computed positions without data
        positions = model.decoder.model.decoder.embed_positions
        positions.weights = positions.get_embedding(LENGTH + PAD + 1, 32, PAD)
    pixels = case.processor.from_pretrained(source)(photos(), return_tensors="pt")["pixel_values"]
    rows = []
    for row in model.generate(pixel_values=pixels, do_sample=False, **settings)[:, 1:].tolist():
        rows.append(row[: row.index(SEP)] if SEP in row else row)
    return rows


@pytest.mark.parametrize("use_cache", [True, False])
def test_thirty_two_tokens_are_generates(captioner: Any, use_cache: bool) -> None:
    case, source, folder, facts = captioner
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, CaptioningPipeline)
    expected = generated(source, case, use_cache=use_cache)
    assert max(map(len, expected)) == TOKENS
    assert pipeline.caption_ids(photos()) == expected
    assert facts["composed"]["questions_equal"] == 6
    assert max(parity["max_relative_error"] for parity in facts["parity"].values()) < 1e-5


@pytest.mark.parametrize("name", ["trocr sinusoidal", "bert", "mbart"])
@torch.no_grad()
def test_other_decoders_write_what_generate_does(name: str, tmp_path: Path) -> None:
    """The components as torch modules: these decoders' graphs are made as those of the two that are exported here."""
    source = write(tmp_path, CASES[name])
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
    for _ in range(TOKENS):
        logits, *past = components["decoder"].module(tokens, *memory, *past)
        tokens = logits[:, -1:].argmax(-1)
        for row, token in zip(rows, tokens[:, 0].tolist(), strict=True):
            row.append(token)
    assert [row[: row.index(SEP)] if SEP in row else row for row in rows] == generated(source, CASES[name])


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
    if not sites:
        return
    cross = [site for site in sites if site.role is AttentionRole.CROSS]
    assert len(cross) == 2
    masked: Any = load_checkpoint(source).model
    masked.get_submodule(cross[0].out).weight.data[:, : cross[0].head_dim] = 0
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
            logits.append(components["decoder"].module(ids, *memory, *past)[0])
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "rule",
    [{"no_repeat_ngram_size": 2}, {"forced_bos_token_id": 77, "forced_eos_token_id": SEP}, {"max_new_tokens": 3}],
)
def test_generation_settings_are_followed(captioner: Any, rule: dict[str, Any], tmp_path: Path) -> None:
    """The same graphs under another manifest, against generate with the same settings."""
    case, source, folder, _ = captioner
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change_json(tmp_path / "generation_config.json", **rule)
    pipeline: Any = load_pipeline(folder, threads=1)
    generation = FAMILY.generation(tmp_path)
    assert generation is not None
    pipeline._decoder._generation = generation
    assert pipeline.caption_ids(photos()) == generated(tmp_path, case)
    assert pipeline.caption_ids(photos()) != generated(source, case)


def test_what_greedy_decoding_would_lose_is_refused(captioner: Any, tmp_path: Path) -> None:
    _, source, _, _ = captioner
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change_json(tmp_path / "generation_config.json", repetition_penalty=1.2)
    with pytest.raises(VlmEdgeError, match=r"generation setting repetition_penalty: 1\.2"):
        FAMILY.generation(tmp_path)
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
    source = write(tmp_path, CASES["gpt2"])
    change_json(source / "preprocessor_config.json", image_processor_type="DonutImageProcessor")
    with pytest.raises(VlmEdgeError, match="image_processor_type: 'DonutImageProcessor'; known: DeiT, ViT"):
        FAMILY.image_processing(source)
    assert POSITIONS < LENGTH
