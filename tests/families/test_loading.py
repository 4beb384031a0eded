"""Checkpoints: loaded as transformers loads them, saved byte for byte the same, and refused where they are broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vlm_edge.core.artifact import digest_folder
from vlm_edge.errors import VlmEdgeError
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


@pytest.fixture
def blip(tiny_blip: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_blip, tmp_path / "checkpoint"))


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def refusal(folder: Path) -> VlmEdgeError:
    with pytest.raises(VlmEdgeError) as caught:
        load_checkpoint(folder)
    assert caught.value.hint
    return caught.value


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


def test_half_precision_becomes_float32_and_old_buffers_are_ignored(blip: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            state[name] = state[name].half()
        state["text_encoder.embeddings.position_ids"] = torch.arange(24)[None]

    edit_weights(blip, change)
    edit_json(blip / "config.json", lambda config: config | {"dtype": "float16"})
    model = load_checkpoint(blip).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_shards_are_one_checkpoint(blip: Path) -> None:
    expected = load_checkpoint(blip).model.state_dict()
    state = load_file(blip / "model.safetensors")
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:40], "model-00002-of-00002.safetensors": names[40:]}
    for shard, members in shards.items():
        save_file({name: state[name] for name in members}, blip / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (blip / "model.safetensors.index.json").write_text(json.dumps(index))
    (blip / "model.safetensors").unlink()
    actual = load_checkpoint(blip).model.state_dict()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())

    (blip / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in str(refusal(blip))
    (blip / "model.safetensors.index.json").write_text('{"weight_map": ["../../etc/passwd"]}')
    assert "weight_map" in str(refusal(blip))
    (blip / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    assert "no shard ../outside.safetensors" in str(refusal(blip))


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


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickled_weights_are_refused_unread(blip: Path, name: str) -> None:
    (blip / "model.safetensors").unlink()
    (blip / name).write_bytes(b"\x80\x04would run code")
    error = refusal(blip)
    assert name in error.message
    assert "pickle" in error.message
    assert "save_pretrained" in str(error.hint)


def test_no_weights_at_all(blip: Path) -> None:
    (blip / "model.safetensors").unlink()
    assert "no weights" in str(refusal(blip))


@pytest.mark.parametrize("keep", [0, 7, 200, -1], ids=["empty", "short header", "no tensors", "one byte short"])
def test_truncated_weights(blip: Path, keep: int) -> None:
    path = blip / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    error = refusal(blip)
    assert str(path) in error.message
    assert "truncated or corrupt" in error.message


def test_weights_that_are_no_safetensors(blip: Path) -> None:
    (blip / "model.safetensors").write_bytes(b"\xff" * 4096)
    assert "truncated or corrupt" in str(refusal(blip))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("vision_model.post_layernorm.bias"),
            "1 missing tensor: vision_model.post_layernorm.bias",
        ),
        (lambda state: state.pop(WORD_EMBEDDINGS), "2 missing tensors"),
        (lambda state: state.update(extra=torch.zeros(2)), "1 unexpected tensor: extra"),
        (
            lambda state: state.update({f"x{i}": torch.zeros(1) for i in range(5)}),
            "5 unexpected tensors: x0, x1, x2 and 2",
        ),
        (
            lambda state: state.update({"vision_model.post_layernorm.bias": torch.zeros(31)}),
            "vision_model.post_layernorm.bias (31,) instead of (32,)",
        ),
    ],
)
def test_weights_that_do_not_fit(blip: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str) -> None:
    edit_weights(blip, change)
    error = refusal(blip)
    assert str(blip) in error.message
    assert message in error.message


def test_a_weight_that_is_nan_or_infinite_is_named_with_its_file(blip: Path) -> None:
    def put(value: float) -> Callable[[dict[str, torch.Tensor]], Any]:
        return lambda state: state[WORD_EMBEDDINGS][3:5, 7].fill_(value)

    for value in (float("nan"), float("inf"), float("-inf")):
        edit_weights(blip, put(value))
        error = refusal(blip)
        assert error.message.startswith(f"{blip / 'model.safetensors'}: {WORD_EMBEDDINGS}: holds NaN or infinity")
        assert error.message.endswith(" 2")
    huge = torch.full((128, 32), 1e300, dtype=torch.float64)
    edit_weights(blip, lambda state: state.update({WORD_EMBEDDINGS: huge}))
    assert "beyond float32" in str(refusal(blip))


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.int32, torch.uint32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn],
)
def test_weights_of_another_type_are_no_floats(blip: Path, dtype: torch.dtype) -> None:
    """Integers of the right shape were read as weights."""
    edit_weights(blip, lambda state: state.update({WORD_EMBEDDINGS: state[WORD_EMBEDDINGS].abs().to(dtype)}))
    message = str(refusal(blip))
    assert WORD_EMBEDDINGS in message
    assert str(dtype).removeprefix("torch.") in message
    quantized = dtype not in (torch.int64, torch.bool, torch.complex64)
    assert ("this is a quantized checkpoint (no quantization_config says by what)" in message) == quantized
    edit_json(blip / "config.json", lambda config: config | {"quantization_config": {"quant_method": "gptq"}})
    assert "config.json: quantization_config: gptq" in str(refusal(blip))


def test_a_quantized_checkpoint_is_named(blip: Path) -> None:
    def pack(state: dict[str, torch.Tensor]) -> None:
        del state[f"{CROSS}.query.weight"]
        state[f"{CROSS}.query.qweight"] = torch.zeros(4, 32, dtype=torch.int32)
        state[f"{CROSS}.query.scales"] = torch.ones(1, 32)

    edit_weights(blip, pack)
    message = str(refusal(blip))
    assert "this is a quantized checkpoint" in message
    assert "dequantize()" in message


def test_what_was_quantized_and_is_float_again_loads(blip: Path) -> None:
    edit_json(blip / "config.json", lambda config: config | {"quantization_config": {"quant_method": "fp8"}})
    assert load_checkpoint(blip).family.name == "blip-vqa"


def test_adapters_are_named_not_left_out(blip: Path, tmp_path: Path) -> None:
    settings = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "owner/base"})
    (blip / "adapter_config.json").write_text(settings)
    save_file({"lora_A": torch.zeros(1)}, blip / "adapter_model.safetensors")
    assert "a PEFT adapter of 'owner/base', which is not merged" in str(refusal(blip))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "adapter_config.json").write_text(settings)
    error = refusal(alone)
    assert error.message.startswith(str(alone / "adapter_config.json"))
    assert "merge_and_unload()" in str(error.hint)
    (blip / "adapter_config.json").unlink()

    def unmerge(state: dict[str, torch.Tensor]) -> None:
        state[f"{CROSS}.query.base_layer.weight"] = state.pop(f"{CROSS}.query.weight")
        state[f"{CROSS}.query.lora_A.default.weight"] = torch.zeros(4, 32)

    edit_weights(blip, unmerge)
    error = refusal(blip)
    assert "unmerged PEFT adapter" in error.message
    assert "merge_and_unload()" in str(error.hint)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": 5}, "weight_map.a: must name a .safetensors file, got '5'"),
        ({"a": ["x"]}, "weight_map.a"),
        ({}, "weight_map"),
        (None, "weight_map"),
        ({"a": "model.bin"}, "weight_map.a"),
        ({"a": "x" * 300 + ".safetensors"}, "no shard"),
        ({"a": "\x00.safetensors"}, "no shard"),
    ],
)
def test_an_index_that_names_no_shards(blip: Path, weight_map: Any, message: str) -> None:
    (blip / "model.safetensors").unlink()
    (blip / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    error = refusal(blip)
    assert error.message.startswith(str(blip / "model.safetensors.index.json"))
    assert message in error.message


def test_a_variant_of_the_weights_is_named(blip: Path) -> None:
    (blip / "model.safetensors").rename(blip / "model.fp16.safetensors")
    error = refusal(blip)
    assert "model.fp16.safetensors: a variant" in error.message
    assert "variant='fp16'" in str(error.hint)


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
