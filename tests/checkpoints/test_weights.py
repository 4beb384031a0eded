"""Weights: half precision and shards are read, and what is broken, pickled, quantized or an adapter is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_checkpoints import edit_json, edit_weights, refusal
from safetensors.torch import load_file, save_file

from vlm_edge.families.loading import load_checkpoint

WORD_EMBEDDINGS = "text_decoder.bert.embeddings.word_embeddings.weight"
TIED_DECODER = "text_decoder.cls.predictions.decoder.weight"
CROSS = "text_decoder.bert.encoder.layer.1.crossattention.self"


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
