"""Models with random weights: complete, reproducible, and with activations of a healthy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from learning import see

from vlm_edge.core.artifact import digest_folder
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.text import Tokenizer
from vlm_edge.training.table import learner_of
from vlm_edge.zoo import MODELS, SIZES, STUDENT_WEIGHTS, ZOO
from vlm_edge.zoo.create import create


@pytest.mark.parametrize("name", ["blip-vqa", "blip-captioning", "clip"])
def test_the_same_seed_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    first, second, other = (create(name, "tiny", tmp_path / str(i), seed) for i, seed in enumerate((7, 7, 8)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert digest_folder(first) == digest_folder(second) != digest_folder(other)


@pytest.mark.parametrize("name", ["blip-vqa", "blip-captioning", "clip"])
def test_transformers_reads_every_part(name: str, tmp_path: Path) -> None:
    folder = create(name, "tiny", tmp_path / "model")
    architecture = {
        "blip-vqa": transformers.BlipForQuestionAnswering,
        "blip-captioning": transformers.BlipForConditionalGeneration,
        "clip": transformers.CLIPModel,
    }[name]
    _, report = architecture.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 128
    text = "what color is the circle"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", *text.split(), "[SEP]"]
    family = load_checkpoint(folder).family
    encoder = Tokenizer(folder, family.text_processing(folder))
    assert encoder.encode([text])[0].tolist() == [ids]
    assert encoder.decode(ids) == text
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = torch.zeros(3, 50, 40, dtype=torch.uint8)
    assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_every_id_that_a_model_can_generate_is_a_word(tmp_path: Path) -> None:
    folder = create("blip-vqa", "tiny", tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = [tokenizer.decode([index], skip_special_tokens=True) for index in range(6, 128)]
    assert all(words)


@pytest.mark.parametrize(
    ("name", "size"), [("blip-vqa", "small"), ("clip", "tiny"), ("blip-mobilevit", "mobilevit-xxs")]
)
def test_activations_neither_fade_nor_explode(name: str, size: str, tmp_path: Path) -> None:
    folder = create(name, size, tmp_path / "model")
    loaded = load_checkpoint(folder)
    image = loaded.family.image_processing(folder)
    spreads: list[float] = []

    def record(_: Any, __: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            spreads.append(float(output.std()))

    for module in loaded.model.get_submodule(loaded.family.vision_tower_path).modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.LayerNorm, torch.nn.BatchNorm2d)):
            module.register_forward_hook(record)
    with torch.no_grad():
        pixels = torch.randn((1, 3, image.height, image.width), generator=torch.Generator().manual_seed(0))
        features = see(learner_of(loaded), pixels)
    assert len(spreads) > 10
    assert 1e-2 < min(spreads) <= max(spreads) < 30
    assert torch.isfinite(features).all()


def test_a_mobilevit_tower_comes_with_its_surgery(tmp_path: Path) -> None:
    loaded = load_checkpoint(create("blip-mobilevit", "mobilevit-xxs", tmp_path / "model"))
    assert [operation["op"] for operation in loaded.surgery] == ["replace_vision_tower"]
    assert type(loaded.model.get_submodule("vision_model")).__name__ == "MobileViTStudent"


@pytest.mark.parametrize(("name", "size"), [("blip", "tiny"), ("clip", "huge")])
def test_unknown_names_list_what_there_is(name: str, size: str, tmp_path: Path) -> None:
    with pytest.raises(VlmEdgeError, match=r"clip: tiny, vit-b-32, vit-b-16, vit-l-14") as caught:
        create(name, size, tmp_path / "model")
    assert repr(name) in caught.value.message
    assert not (tmp_path / "model").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(VlmEdgeError, match="not an empty folder"):
        create("clip", "tiny", tmp_path)
    with pytest.raises(VlmEdgeError, match="not an empty folder"):
        create("clip", "tiny", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_every_size_in_the_table_has_its_numbers() -> None:
    from vlm_edge.zoo.create import _SIZES

    assert {name: tuple(sizes) for name, sizes in _SIZES.items()} == SIZES


def test_the_table_names_shipped_folders() -> None:
    for name, entry in (ZOO | STUDENT_WEIGHTS).items():
        assert entry.name == name
        assert entry.folder == MODELS / name
        assert (entry.folder / "model.safetensors").is_file()
        assert (entry.folder / "README.md").is_file()
        assert entry.summary
    assert sum(path.stat().st_size for path in ZOO["blip-easyvqa"].folder.iterdir()) < 25_000_000


@pytest.mark.parametrize("name", sorted(ZOO))
def test_shipped_models_load(name: str) -> None:
    loaded = load_checkpoint(ZOO[name].folder)
    assert loaded.family.text_processing(ZOO[name].folder).tokenizer == "tokenizer.json"
    assert loaded.family.image_processing(ZOO[name].folder).height == 64
