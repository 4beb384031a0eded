"""Checkpoints: loaded as transformers loads them, saved byte for byte the same, and refused where they are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from broken_checkpoints import edit_json, edit_weights, refusal
from safetensors.torch import load_file

from vlm_edge.core.artifact import digest_folder
from vlm_edge.families.loading import load_checkpoint, save_checkpoint
from vlm_edge.surgery.replay import apply_surgery

WORD_EMBEDDINGS = "text_decoder.bert.embeddings.word_embeddings.weight"
TIED_DECODER = "text_decoder.cls.predictions.decoder.weight"
CROSS = "text_decoder.bert.encoder.layer.1.crossattention.self"
PRUNE: dict[str, Any] = {"op": "prune_heads", "site": CROSS, "keep": [0, 2]}
STUDENT: dict[str, Any] = {
    "op": "replace_vision_tower",
    "student": "mobilevit-xxs",
    "config": {"image_height": 32, "image_width": 32},
}


@pytest.mark.parametrize(
    ("fixture", "model_class"), [("tiny_blip", "BlipForQuestionAnswering"), ("tiny_clip", "CLIPModel")]
)
def test_loads_what_transformers_loads(fixture: str, model_class: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    before = torch.random.get_rng_state()
    loaded = load_checkpoint(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    reference = getattr(transformers, model_class).from_pretrained(folder)
    assert type(loaded.model) is type(reference)
    assert not loaded.model.training
    assert loaded.surgery == ()
    expected = reference.state_dict()
    actual = loaded.model.state_dict()
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_the_decoder_shares_its_embeddings(blip: Path) -> None:
    decoder: Any = load_checkpoint(blip).model.get_submodule("text_decoder")
    assert decoder.cls.predictions.decoder.weight is decoder.bert.embeddings.word_embeddings.weight


def test_a_tied_tensor_may_go_by_its_other_name(blip: Path) -> None:
    expected = load_file(blip / "model.safetensors")[WORD_EMBEDDINGS]
    edit_weights(blip, lambda state: state.update({TIED_DECODER: state.pop(WORD_EMBEDDINGS)}))
    model = load_checkpoint(blip).model
    assert torch.equal(model.state_dict()[WORD_EMBEDDINGS], expected)
    assert torch.equal(model.state_dict()[TIED_DECODER], expected)


def test_tied_tensors_with_different_values_are_untied_as_in_transformers(blip: Path, tmp_path: Path) -> None:
    edit_weights(blip, lambda state: state.update({TIED_DECODER: state[WORD_EMBEDDINGS] + 1}))
    loaded = load_checkpoint(blip)
    state = loaded.model.state_dict()
    torch.testing.assert_close(state[TIED_DECODER], state[WORD_EMBEDDINGS] + 1)
    reference = transformers.BlipForQuestionAnswering.from_pretrained(blip).state_dict()
    assert torch.equal(state[TIED_DECODER], reference[TIED_DECODER])
    save_checkpoint(tmp_path / "saved", loaded.model, loaded)
    again = load_checkpoint(tmp_path / "saved").model.state_dict()
    assert torch.equal(again[TIED_DECODER], state[TIED_DECODER])
    assert torch.equal(again[WORD_EMBEDDINGS], state[WORD_EMBEDDINGS])


def test_saving_is_complete_and_reproducible(blip: Path, tmp_path: Path) -> None:
    (blip / "pytorch_model.bin").write_bytes(b"not copied")
    (blip / "README.md").write_text("a model card, with the score of these weights")
    (blip / "LICENSE").write_text("goes where the weights go")
    (blip / "special_tokens_map.json").write_text("{}")
    loaded = load_checkpoint(blip)
    save_checkpoint(tmp_path / "first", loaded.model, loaded)
    save_checkpoint(tmp_path / "second", loaded.model, loaded)
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert names == {path.name for path in blip.iterdir()} - {"pytorch_model.bin", "README.md"}
    assert digest_folder(tmp_path / "first") == digest_folder(tmp_path / "second")
    again = load_checkpoint(tmp_path / "first")
    save_checkpoint(tmp_path / "third", again.model, again)
    assert digest_folder(tmp_path / "third") == digest_folder(tmp_path / "first")
    reference = transformers.BlipForQuestionAnswering.from_pretrained(tmp_path / "first")
    assert all(torch.equal(again.model.state_dict()[name], tensor) for name, tensor in reference.state_dict().items())


@pytest.mark.parametrize("operations", [[PRUNE], [STUDENT], [PRUNE, STUDENT]], ids=["prune", "student", "both"])
def test_surgery_survives_saving(tiny_blip: Path, tmp_path: Path, operations: list[dict[str, Any]]) -> None:
    loaded = load_checkpoint(tiny_blip)
    apply_surgery(loaded.model, loaded.family, operations, tmp_path)
    model: Any = loaded.model.eval()
    save_checkpoint(tmp_path / "saved", model, loaded, operations)
    again = load_checkpoint(tmp_path / "saved")
    assert list(again.surgery) == operations
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "pixel_values": torch.randn((2, 3, 32, 32), generator=generator),
        "input_ids": torch.randint(0, 128, (2, 6), generator=generator),
        "decoder_input_ids": torch.randint(0, 128, (2, 3), generator=generator),
    }
    reloaded: Any = again.model
    with torch.no_grad():
        features, expected = (each.vision_model(pixel_values=inputs["pixel_values"])[0] for each in (reloaded, model))
        answers = reloaded.generate(
            input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], max_new_tokens=4
        )
        assert torch.equal(features, expected)
        assert torch.equal(
            answers,
            model.generate(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], max_new_tokens=4),
        )


def test_surgery_adds_up_over_two_saves(tiny_blip: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_blip)
    apply_surgery(loaded.model, loaded.family, [PRUNE], tmp_path)
    save_checkpoint(tmp_path / "once", loaded.model, loaded, [PRUNE])
    once = load_checkpoint(tmp_path / "once")
    second = PRUNE | {"keep": [1]}
    apply_surgery(once.model, once.family, [second], tmp_path)
    save_checkpoint(tmp_path / "twice", once.model, once, [second])
    twice = load_checkpoint(tmp_path / "twice")
    assert list(twice.surgery) == [PRUNE, second]
    query: Any = twice.model.get_submodule(f"{CROSS}.query")
    original: Any = load_checkpoint(tiny_blip).model.get_submodule(f"{CROSS}.query")
    assert torch.equal(query.weight, original.weight[16:24])  # of heads 0 and 2, the second: 8 rows a head


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ("{", "not valid JSON"),
        ('{"op": "prune_heads"}', "must hold a list of objects"),
        ('[{"op": "prune_head"}]', "[0].op: unknown 'prune_head'; known: prune_heads, replace_vision_tower"),
        ('[{"op": "prune_heads", "keep": [0]}]', "[0]: no 'site'"),
        ('[{"op": "prune_heads", "site": "x", "keep": [0]}]', "no attention at 'x'"),
        (json.dumps([PRUNE | {"keep": [9]}]), "9"),
        (json.dumps([STUDENT | {"student": "mobilevit-xx"}]), "mobilevit-xxs"),
        (json.dumps([STUDENT | {"config": {"image_height": 32}}]), "image_width"),
        (json.dumps([PRUNE]), "of another shape"),
    ],
)
def test_surgery_that_does_not_fit_is_refused(blip: Path, operations: str, message: str) -> None:
    (blip / "surgery.json").write_text(operations)
    assert message in str(refusal(blip))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in str(refusal(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in str(refusal(tmp_path / "file"))
    assert "no config.json" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: not valid JSON"),
        ("\xff\xfe", "config.json: not valid JSON"),
        ("[]", "must hold a JSON object, got list"),
        ("{}", "architectures: must list the model's class, got None"),
        ('{"architectures": []}', "architectures"),
        ('{"architectures": ["BlipForQuestionAnswerin"]}', "did you mean 'BlipForQuestionAnswering'"),
        ('{"architectures": ["LxmertForQuestionAnswering"]}', "reads regions that an object detector found"),
        ('{"architectures": ["LlamaForCausalLM"]}', "(text-generation, by transformers)"),
        ('{"architectures": ["BlipForQuestionAnswering"], "text_config": {"hidden_size": "wide"}}', "hidden_size"),
        ('{"architectures": ["BlipForQuestionAnswering"], "vision_config": {"num_attention_heads": 5}}', "num_heads"),
    ],
)
def test_a_config_that_is_broken_or_unknown(blip: Path, text: str, message: str) -> None:
    (blip / "config.json").write_text(text, encoding="latin-1")
    error = refusal(blip)
    assert str(blip / "config.json") in error.message
    assert message in error.message


def test_an_unknown_architecture_says_how_to_add_one(blip: Path) -> None:
    edit_json(blip / "config.json", lambda config: config | {"architectures": ["MadeUpVlmForConditionalGeneration"]})
    assert "docs/writing-a-family.md" in str(refusal(blip))


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0}, {"hidden_size": -8}, {"hidden_size": 10**13}, {"num_hidden_layers": 1.5},
        {"vocab_size": None}, {"hidden_act": "nothing"}, {"layer_norm_eps": "small"}, {"intermediate_size": []},
    ],
)  # fmt: skip
def test_sizes_that_no_model_has(blip: Path, change: dict[str, Any]) -> None:
    edit_json(blip / "config.json", lambda config: config | {"text_config": config["text_config"] | change})
    assert refusal(blip).message.startswith(str(blip))
