"""BLIP's captioning components against transformers' own forward and generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_checkpoints import Exported, ended, photos
from learning import batch_of, logits_of
from tiny_blip import TOKENS
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlm_edge.data.dataset import Sample
from vlm_edge.families import FAMILIES, family_for
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.loading import load_checkpoint, save_checkpoint
from vlm_edge.runtime import CaptioningPipeline, load_pipeline
from vlm_edge.surgery.heads import prune_heads
from vlm_edge.training.table import learner_of

SUBJECTS = ["BLIP, captions"]
FAMILY = FAMILIES["blip-captioning"]
DEC, SEP = 5, 3


@pytest.fixture(scope="module")
def model(tiny_captioner: Path) -> Any:
    return load_checkpoint(tiny_captioner).model


@pytest.fixture(scope="module")
def modules(model: Any, tiny_captioner: Path) -> dict[str, Any]:
    exports = FAMILY.components(model, FAMILY.image_processing(tiny_captioner))
    return {name: export.module for name, export in exports.items()}


def random_pixels(images: int) -> Tensor:
    return torch.randn((images, 3, 32, 32), generator=torch.Generator().manual_seed(5))


def empty_past(cross: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor[:, :, :0] for tensor in cross]


def captions(*texts: str) -> list[Sample]:
    return [Sample(id=str(row), image=Path(f"{row}.png"), text="", answers=(text,)) for row, text in enumerate(texts)]


@torch.no_grad()
def greedy(modules: dict[str, Any], pixels: Tensor, start: Tensor, steps: int) -> Tensor:
    """Greedy ids (images, steps) from the components, ``start`` (images, prompt) in one prefill."""
    cross = modules["vision_encoder"](pixels)
    past, token, tokens, seen = empty_past(cross), start, [], torch.ones_like(start)
    for _ in range(steps):
        logits, *past = modules["decoder"](token, seen, *cross, *past)
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        token = logits[:, -1:].argmax(-1)
        tokens.append(token)
    return torch.cat(tokens, dim=1)


def test_the_architecture_finds_the_family() -> None:
    assert family_for("BlipForConditionalGeneration") is FAMILY
    assert FAMILY.pipeline == "captioning"


def test_thirty_two_tokens_are_generates(subject: Exported, families_page: Any) -> None:
    answers = subject.pipeline.caption_ids(photos())
    assert answers == subject.without_cache().caption_ids(photos())
    processor = transformers.AutoImageProcessor.from_pretrained(subject.checkpoint, backend="pil")
    pixels = processor(photos(), return_tensors="pt")["pixel_values"]
    for use_cache in (True, False):
        settings = {"do_sample": False, "max_new_tokens": TOKENS, "use_cache": use_cache}
        ids = subject.model.generate(pixel_values=pixels, **settings)[:, 1:].tolist()
        assert answers == [ended(row) for row in ids]
    families_page("one prompt for all images of a batch", tokens=answers)


def test_components_caption_as_generate_does(model: Any, modules: dict[str, Any]) -> None:
    pixels = random_pixels(4)
    expected = model.generate(pixel_values=pixels, max_new_tokens=6, min_new_tokens=6, do_sample=False)[:, 1:]
    assert torch.equal(greedy(modules, pixels, torch.full((4, 1), DEC), 6), expected)


def test_a_prompt_is_gone_on_from_as_generate_does(model: Any, modules: dict[str, Any], tiny_captioner: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_captioner)
    prompt = tokenizer(["a picture of"] * 3, return_tensors="pt").input_ids  # [CLS] a picture of [SEP]
    pixels = random_pixels(3)
    length = prompt.shape[1] - 1  # generate puts [DEC] for [CLS], and leaves [SEP] out
    expected = model.generate(pixels, prompt.clone(), max_new_tokens=5, min_new_tokens=5, do_sample=False)[:, length:]
    start = torch.cat([torch.full((3, 1), DEC), prompt[:, 1:-1]], dim=1)
    assert torch.equal(greedy(modules, pixels, start, 5), expected)


def test_the_exported_pipeline_captions_as_generate_does(
    model: Any, tiny_captioner: Path, tiny_captioner_graphs: Any
) -> None:
    """From images of another size than the model's own; the texts are what transformers makes of generate's ids."""
    assert tiny_captioner_graphs.facts["composed"] == {"questions_equal": 6, "ties": 0}
    assert all(each["max_relative_error"] < 1e-5 for each in tiny_captioner_graphs.facts["parity"].values())
    pipeline = load_pipeline(tiny_captioner_graphs.folder, threads=1)
    assert isinstance(pipeline, CaptioningPipeline)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_captioner)
    processor = transformers.AutoImageProcessor.from_pretrained(tiny_captioner, backend="pil")
    generator = np.random.default_rng(3)
    images = [generator.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(5)]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    ids = model.generate(pixel_values=pixels, max_new_tokens=5, do_sample=False)[:, 1:].tolist()
    rows = [ended(row) for row in ids]
    assert pipeline.caption_ids(images, batch_size=2) == rows
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert pipeline.caption_batch(images) == texts
    assert pipeline.caption(images[0]) == texts[0]
    prompt = tokenizer(["a picture of"], return_tensors="pt").input_ids
    begun = model.generate(pixels[:1], prompt, max_new_tokens=5, do_sample=False)[0, 4:].tolist()
    assert pipeline.caption_ids(images[:1], "a picture of") == [ended(begun)]


@torch.no_grad()
def test_training_has_forwards_loss(model: Any, tiny_captioner: Path) -> None:
    """transformers shifts inside (logits t against label t + 1); ours come aligned. Both losses are the same."""
    pixels, learner = random_pixels(2), learner_of(load_checkpoint(tiny_captioner))
    samples = captions("a red circle", "a blue square", "a triangle")
    batch = batch_of(learner, samples, [0, 1, 0], pixels)
    logits = logits_of(learner, batch)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_captioner)
    for row, (sample, image) in enumerate(zip(samples, (0, 1, 0), strict=True)):
        words = tokenizer(sample.answers[0], add_special_tokens=False).input_ids
        targets = torch.tensor([[DEC, *words, SEP]])
        theirs = model(input_ids=targets, pixel_values=pixels[image : image + 1], labels=targets).loss
        torch.testing.assert_close(cross_entropy(logits[row], batch.labels[row], ignore_index=-100), theirs)


def test_a_prompt_is_read_and_not_learned(tiny_captioner: Path) -> None:
    learner = learner_of(load_checkpoint(tiny_captioner))
    batch = batch_of(learner, captions("a red circle", "blue"), [0, 1], prompts=("a picture of", "unused"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_captioner)
    a, picture, of, red, circle, blue = tokenizer.convert_tokens_to_ids(["a", "picture", "of", "red", "circle", "blue"])
    assert batch.text["decoder_input_ids"].tolist() == [
        [DEC, a, picture, of, a, red, circle],
        [DEC, a, picture, of, blue, 0, 0],
    ]
    assert batch.labels.tolist() == [[-100] * 3 + [a, red, circle, SEP], [-100] * 3 + [blue, SEP, -100, -100]]


def test_attention_sites_are_the_decoders(model: Any) -> None:
    sites = FAMILY.attention_sites(model)
    assert [site.role for site in sites] == [AttentionRole.SELF, AttentionRole.CROSS] * 2
    assert {site.component for site in sites} == {"decoder"}


@torch.no_grad()
def test_pruned_heads_change_the_caption_as_zeroed_ones_do_and_are_saved(tiny_captioner: Path, tmp_path: Path) -> None:
    """A head whose value rows and bias are zero adds nothing: removing it must change nothing more."""
    dense, pruned = (load_checkpoint(tiny_captioner) for _ in range(2))
    for index, site in enumerate(FAMILY.attention_sites(dense.model)):
        gone = slice(index % 4 * site.head_dim, (index % 4 + 1) * site.head_dim)
        value: Any = dense.model.get_submodule(site.v)
        value.weight[gone] = 0
        value.bias[gone] = 0
    operations = []
    for index, site in enumerate(FAMILY.attention_sites(pruned.model)):
        keep = [head for head in range(4) if head != index % 4]
        operations.append({"op": "prune_heads", "site": site.path, "keep": keep})
        prune_heads(pruned.model, site, keep)
    save_checkpoint(tmp_path / "pruned", pruned.model, pruned, operations)
    again = load_checkpoint(tmp_path / "pruned")
    learners = [learner_of(each) for each in (dense, pruned, again)]
    batch = batch_of(learners[0], captions("a red circle"), [0], random_pixels(1))
    logits = [logits_of(learner, batch) for learner in learners]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(logits[2], logits[1])
    image = FAMILY.image_processing(tiny_captioner)
    shapes = FAMILY.components(again.model, image)["decoder"].output_shapes
    assert shapes["present.0.key"] == ("batch", 3, "past + new", 8)
