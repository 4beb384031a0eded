"""BLIP's components against transformers' own forward and generate, and its batches against the architecture."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_checkpoints import Exported, check_vqa_answers
from learning import batch_of, logits_of, sample
from tiny_blip import TOKENS
from torch import Tensor

from vlm_edge.checkpoints.generation_settings import MAX_NEW_TOKENS
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES, family_for
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.blip import TextEncoder, decoder_parts
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.families.parts.cached_decoder import MaskedDecoder
from vlm_edge.processing.manifest import Generation, ImageProcessing
from vlm_edge.training.losses import answer_loss
from vlm_edge.training.table import learner_of

SUBJECTS = ["BLIP, questions"]
FAMILY = FAMILIES["blip-vqa"]


@pytest.fixture(scope="module")
def model(tiny_blip: Path) -> Any:
    return load_checkpoint(tiny_blip).model


@pytest.fixture(scope="module")
def modules(model: Any, tiny_blip: Path) -> dict[str, Any]:
    exports = FAMILY.components(model, FAMILY.image_processing(tiny_blip))
    return {name: export.module for name, export in exports.items()}


def random_inputs(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """pixel_values, input_ids padded with 0, attention_mask."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn((len(lengths), 3, 32, 32), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return pixels, torch.randint(6, 128, mask.shape, generator=generator) * mask, mask


@torch.no_grad()
def greedy(modules: dict[str, Any], pixels: Tensor, ids: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Greedy token ids (batch, steps) through the three components, with the cache from step to step."""
    (features,) = modules["vision_encoder"](pixels)
    cross = modules["text_encoder"](ids, mask, features)
    past = [tensor[:, :, :0] for tensor in cross]
    token = torch.full((len(ids), 1), 5)
    tokens = []
    for step in range(steps):
        seen = torch.ones((len(ids), step + 1), dtype=torch.int64)
        logits, *past = modules["decoder"](token, seen, mask, *cross, *past)
        token = logits[:, -1:].argmax(-1)
        tokens.append(token)
    return torch.cat(tokens, dim=1)


def test_thirty_two_tokens_are_generates(subject: Exported, families_page: Any) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(subject.checkpoint, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(subject.checkpoint)

    def asked(image: Any, question: str) -> dict[str, Any]:
        ids = tokenizer(question, return_tensors="pt").input_ids
        return {**processor(image, return_tensors="pt"), "input_ids": ids, "max_new_tokens": TOKENS}

    answers = check_vqa_answers(subject, ["what color is the circle", "is it blue", "how many"], asked)
    families_page("padding of a question is masked, which transformers 5.23 forgets in the decoder", tokens=answers)


def test_components_answer_as_generate_does(model: Any, modules: dict[str, Any]) -> None:
    for seed_length in (3, 6, 9):
        pixels, ids, mask = random_inputs([seed_length])
        expected = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=6)[:, 1:]
        assert torch.equal(greedy(modules, pixels, ids, mask, expected.shape[1]), expected)


def test_a_padded_question_is_answered_as_alone(modules: dict[str, Any]) -> None:
    lengths = [9, 3, 6]
    pixels, ids, mask = random_inputs(lengths)
    together = greedy(modules, pixels, ids, mask, 5)
    for row, length in enumerate(lengths):
        part = slice(row, row + 1)
        assert torch.equal(together[part], greedy(modules, pixels[part], ids[part, :length], mask[part, :length], 5))


@torch.no_grad()
def test_prefill_is_the_same_as_steps(modules: dict[str, Any]) -> None:
    pixels, ids, mask = random_inputs([7, 7])
    (features,) = modules["vision_encoder"](pixels)
    cross = modules["text_encoder"](ids, mask, features)
    empty = [tensor[:, :, :0] for tensor in cross]
    answer = torch.tensor([[5, 40, 41, 42], [5, 50, 51, 52]])
    seen = torch.ones_like(answer)
    whole, *_ = modules["decoder"](answer, seen, mask, *cross, *empty)
    first, *past = modules["decoder"](answer[:, :1], seen[:, :1], mask, *cross, *empty)
    rest, *_ = modules["decoder"](answer[:, 1:], seen, mask, *cross, *past)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_training_has_forwards_loss(model: Any, tiny_blip: Path) -> None:
    """transformers shifts inside (logits t against label t + 1); ours come aligned. Both losses are the same."""
    learner = learner_of(load_checkpoint(tiny_blip))
    batch = batch_of(learner, [sample("what color is the circle", "red")], [0], random_inputs([1])[0])
    ours = answer_loss(logits_of(learner, batch), batch.labels)
    ids = transformers.AutoTokenizer.from_pretrained(tiny_blip)
    red = ids.convert_tokens_to_ids("red")
    theirs = model(input_ids=batch.text["input_ids"], labels=torch.tensor([[5, red, 3]]), **batch.pixels).loss
    torch.testing.assert_close(ours, theirs)


def test_answers_are_aligned_and_padded(tiny_blip: Path) -> None:
    samples = [
        sample("what color", "red", "blue", "blue"),
        sample("is there a red circle in the image", "yes no yes"),
    ]
    batch = batch_of(learner_of(load_checkpoint(tiny_blip)), samples, [0, 0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_blip)
    expected = tokenizer([each.text for each in samples], padding=True, return_tensors="pt")
    assert torch.equal(batch.text["input_ids"], expected["input_ids"])
    assert torch.equal(batch.text["attention_mask"], expected["attention_mask"])
    blue, yes, no = tokenizer.convert_tokens_to_ids(["blue", "yes", "no"])
    assert batch.text["decoder_input_ids"].tolist() == [[5, blue, 0, 0], [5, yes, no, yes]]
    assert batch.labels.tolist() == [[blue, 3, -100, -100], [yes, no, yes, 3]]


def test_attention_sites_name_what_they_say(model: Any) -> None:
    sites = FAMILY.attention_sites(model)
    assert len(sites) == 8  # 2 layers x self and cross, in the text encoder and the decoder; none in the vision tower
    assert sum(site.role is AttentionRole.CROSS for site in sites) == 4
    for site in sites:
        module = model.get_submodule(site.path)
        assert getattr(module, site.num_heads_attr) == site.num_heads == 4
        assert site.all_head_size_attr is not None
        assert getattr(module, site.all_head_size_attr) == site.num_heads * site.head_dim == 32
        for part in (site.q, site.k, site.v):
            assert model.get_submodule(part).weight.shape == (32, 32)
        assert model.get_submodule(site.out).weight.shape == (32, 32)
        assert site.component == ("decoder" if site.path.startswith("text_decoder") else "text_encoder")
    assert not any(site.path.startswith("vision_model") for site in sites)


def test_the_checkpoints_settings(tiny_blip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_blip, tmp_path / "model"))
    generation = FAMILY.generation(folder)
    assert generation is not None
    assert generation == Generation(start_token_id=5, eos_token_id=3, pad_token_id=0, max_new_tokens=5, positions=24)
    (folder / "generation_config.json").unlink()
    generation = FAMILY.generation(folder)
    assert generation is not None
    assert generation.max_new_tokens == MAX_NEW_TOKENS
    text = FAMILY.text_processing(folder)
    assert (text.pad_token_id, text.max_length) == (0, 24)
    assert FAMILY.image_processing(folder) == ImageProcessing(
        height=32,
        width=32,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        processor="BlipImageProcessor",
        transparency="white",
    )


def test_without_its_own_limit_generate_stops_at_20_new_tokens(model: Any) -> None:
    pixels, ids, _ = random_inputs([4])
    model = copy.deepcopy(model)
    model.generation_config = transformers.GenerationConfig()
    with pytest.warns(UserWarning, match="model-agnostic default"):
        answer = model.generate(input_ids=ids, pixel_values=pixels, min_new_tokens=20)
    assert answer.shape == (1, 1 + MAX_NEW_TOKENS)


def test_a_processor_that_the_manifest_cannot_say(tiny_blip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_blip, tmp_path / "model"))
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"do_resize": False}))
    with pytest.raises(VlmEdgeError, match="do_resize=False"):
        FAMILY.image_processing(folder)
    path.write_text(json.dumps(settings | {"size": {"shortest_edge": 32}}))
    with pytest.raises(VlmEdgeError, match="must resize to height x width"):
        FAMILY.image_processing(folder)
    path.write_text(json.dumps(settings | {"do_normalize": False, "do_rescale": False}))
    plain = FAMILY.image_processing(folder)
    assert (plain.mean, plain.std, plain.rescale_factor) == ((0, 0, 0), (1, 1, 1), 1.0)
    path.unlink()
    with pytest.raises(VlmEdgeError, match="no usable image processor"):
        FAMILY.image_processing(folder)


def test_a_tokenizer_that_is_missing_or_has_no_padding(tiny_blip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_blip, tmp_path / "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(VlmEdgeError, match="no padding token"):
        FAMILY.text_processing(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(VlmEdgeError, match=r"no tokenizer\.json"):
        FAMILY.text_processing(folder)


def test_the_table() -> None:
    assert family_for("BlipForQuestionAnswering") is FAMILY
    assert family_for("CLIPModel") is FAMILIES["clip"]
    assert FAMILY.logit_scale(torch.nn.Linear(1, 1)) is None
    with pytest.raises(VlmEdgeError, match=r"did you mean .*'CLIPModel'"):
        family_for("ClipModel")


@torch.no_grad()
def test_no_mask_stays_behind_on_the_cpu(tiny_blip: Path) -> None:
    model: Any = load_checkpoint(tiny_blip).model.to("meta")
    ids = torch.zeros(2, 4, dtype=torch.int64, device="meta")
    cross = TextEncoder(model)(ids, torch.ones_like(ids), torch.zeros(2, 17, 32, device="meta"))
    ones = torch.ones_like(ids)
    decoder = MaskedDecoder(*decoder_parts(model))
    logits, *_ = decoder(ids, ones, ones, *cross, *(tensor[:, :, :0] for tensor in cross))
    assert logits.device.type == "meta"
