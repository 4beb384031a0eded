"""open_clip's checkpoints: a CLIPModel written under open_clip's names has to come back as itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_checkpoints import PAD, SEP, TOWER, VOCABULARY, exported, least_cosine, photos
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import load_checkpoint, save_checkpoint
from vlm_edge.runtime import DualEncoderPipeline, load_pipeline
from vlm_edge.zoo.create import randomize, write_tokenizer

START = 6
"""An ordinary token."""
LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def model_cfg(**text: Any) -> dict[str, Any]:
    return {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "mlp_ratio": 1.5, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 2,
                     "mlp_ratio": 1.5} | text,
    }  # fmt: skip


def clip_model(activation: str = "quick_gelu", eos_token_id: int = 2) -> Any:
    """CLIPModel of the same sizes, its config written by hand."""
    common = TOWER | {"hidden_act": activation, "projection_dim": 24}
    config = transformers.CLIPConfig(
        vision_config=common | {"image_size": 32, "patch_size": 8},
        text_config=common
        | {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": eos_token_id, "pad_token_id": PAD},
        projection_dim=24,
    )
    model = transformers.CLIPModel(config)
    randomize(model, seed=5)
    return model.eval()


def open_clip_state(state: dict[str, Tensor], text_prefix: str = "") -> dict[str, Tensor]:
    """CLIPModel's tensors under the names of open_clip's transformer.py, written down tower by tower."""
    result: dict[str, Tensor] = {
        "logit_scale": state["logit_scale"],
        f"{text_prefix}attn_mask": torch.zeros(16, 16),
        f"{text_prefix}positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        f"{text_prefix}token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        f"{text_prefix}text_projection": state["text_projection.weight"].T.contiguous(),
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        result[f"{text_prefix}ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        result[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        result[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        for theirs, ours in ((f"{text_prefix}transformer", "text_model"), ("visual.transformer", "vision_model")):
            for layer in range(2):
                block, source = f"{theirs}.resblocks.{layer}", f"{ours}.encoder.layers.{layer}"
                for new, old in LAYER.items():
                    result[f"{block}.{new}.{kind}"] = state[f"{source}.{old}.{kind}"]
                result[f"{block}.attn.in_proj_{kind}"] = torch.cat(
                    [state[f"{source}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                )
    return result


def write_folder(folder: Path, model: Any, settings: dict[str, Any], text_prefix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(open_clip_state(model.state_dict(), text_prefix), folder / "open_clip_model.safetensors")
    write_tokenizer(folder, VOCABULARY, 16)
    return folder


def test_exported_it_embeds_as_the_clip_it_was(tmp_path: Path) -> None:
    model = clip_model()
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
    source = write_folder(tmp_path / "source", model, {"model_cfg": model_cfg(), "preprocess_cfg": preprocess})
    subject = exported(source, tmp_path / "graphs")
    folder, facts = subject.folder, subject.facts
    assert facts["composed"]["max_relative_error"] < 1e-5
    pipeline = load_pipeline(folder, threads=1)
    assert isinstance(pipeline, DualEncoderPipeline)
    assert pipeline.manifest.image.transparency == "refuse"  # open_clip scales images before it drops alpha
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.3, 0.4],
    )  # fmt: skip
    texts = ["a red circle", "blue"]
    tokens = transformers.AutoTokenizer.from_pretrained(source)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(
            pixel_values=processor(photos(), return_tensors="pt")["pixel_values"],
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        )
    assert least_cosine(pipeline.embed_images(photos()), expected.image_embeds) > 1 - 1e-5
    assert least_cosine(pipeline.embed_texts(texts), expected.text_embeds) > 1 - 1e-5


@pytest.mark.parametrize(
    ("quick", "text", "eos_token_id", "prefix"),
    [(True, {}, 2, ""), (False, {"pool_type": "eos", "eos_id": SEP}, SEP, "text.")],
    ids=["openai", "custom text"],
)
def test_activation_and_pooling(
    quick: bool, text: dict[str, Any], eos_token_id: int, prefix: str, tmp_path: Path
) -> None:
    model = clip_model("quick_gelu" if quick else "gelu", eos_token_id)
    write_folder(tmp_path, model, {"model_cfg": model_cfg(**text) | {"quick_gelu": quick}}, prefix)
    loaded: Any = load_checkpoint(tmp_path)
    assert loaded.family.name == "clip"
    ids, pixels = torch.tensor([[START, 40, SEP, 90], [START, 90, 40, SEP]]), torch.ones(2, 3, 32, 32)
    with torch.no_grad():
        actual, expected = (each(input_ids=ids, pixel_values=pixels) for each in (loaded.model, model))
    torch.testing.assert_close(actual.text_embeds, expected.text_embeds)
    torch.testing.assert_close(actual.image_embeds, expected.image_embeds)


def test_a_derived_checkpoint_is_a_clip(tmp_path: Path) -> None:
    source = write_folder(
        tmp_path / "a", clip_model(), {"model_cfg": model_cfg(), "preprocess_cfg": {"resize_mode": "squash"}}
    )
    loaded = load_checkpoint(source)
    save_checkpoint(tmp_path / "b", loaded.model, loaded)
    again = load_checkpoint(tmp_path / "b")
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    image = again.family.image_processing(tmp_path / "b")
    assert image == loaded.family.image_processing(source)
    assert (image.shortest_edge, image.center_crop) == (None, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"timm_model_name": "vit_base"}}, r"vision_cfg\.timm_model_name: 'vit_base'"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, r"text_cfg\.hf_model_name: 'roberta-base'"),
        ({"text_cfg": {"pool_type": "last"}}, "pool_type: 'last'; CLIPModel has argmax, eos"),
        ({"text_cfg": None}, "no model_cfg with vision_cfg and text_cfg"),
    ],
)
def test_what_clip_has_not_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_folder(tmp_path, clip_model(), {"model_cfg": model_cfg() | change})
    with pytest.raises(VlmEdgeError, match=message):
        load_checkpoint(tmp_path)


def test_a_resize_that_has_no_fixed_size_is_refused(tmp_path: Path) -> None:
    settings = {"model_cfg": model_cfg(), "preprocess_cfg": {"resize_mode": "longest"}}
    loaded = load_checkpoint(write_folder(tmp_path, clip_model(), settings))
    with pytest.raises(VlmEdgeError, match="resize_mode: 'longest'"):
        loaded.family.image_processing(tmp_path)
