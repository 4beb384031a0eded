"""open_clip's checkpoints (open_clip_config.json, open_clip_model.safetensors) as transformers' CLIPModel.

The architecture is the same; settings and tensors have other names, and query, key and value lie in one tensor
(nn.MultiheadAttention). See open_clip's model.py and transformer.py, and OpenAI's clip/model.py before them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_edge.errors import VlmEdgeError

CONFIG_NAME = "open_clip_config.json"
ARGMAX_POOLING = 2
"""The eos_token_id with which CLIPModel pools at the largest id, as open_clip does."""
_VISION_DEFAULTS = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
_TEXT_DEFAULTS = {
    "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0,
    "pool_type": "argmax", "eos_id": 2,
}  # fmt: skip
_SAME_AS_CLIP: dict[str, tuple[object, ...]] = {
    "patch_dropout": (0.0,),
    "pad_id": (0,),
    "proj_type": ("linear",),
    "proj_bias": (False,),
    "output_tokens": (False,),
    "act_kwargs": ({}, None),
    "norm_kwargs": ({}, None),
}
"""Further settings that CLIPModel can follow, at these values."""
_RENAMED = (
    (r"^(text\.)?positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^(text\.)?token_embedding\.weight$", "text_model.embeddings.token_embedding.weight"),
    (r"^(text\.)?text_projection$", "text_projection.weight"),
    (r"^(text\.)?ln_final\.", "text_model.final_layer_norm."),
    (r"^(text\.)?transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^visual\.conv1\.weight$", "vision_model.embeddings.patch_embedding.weight"),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_TRANSPOSED = ("text_projection.weight", "visual_projection.weight")


def clip_config(settings: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """``open_clip_config.json`` as a CLIPModel's config.json.

    Raises:
        VlmEdgeError: ``model_cfg`` is missing, or asks for what CLIPModel has not (a timm or Hugging Face tower,
            another pooling, attentional pooling); ``place`` names the file.
    """
    model = settings.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(key), dict) for key in ("vision_cfg", "text_cfg")):
        raise VlmEdgeError(f"{place}: no model_cfg with vision_cfg and text_cfg", "copy the file from its source again")
    vision = _settings(model["vision_cfg"], _VISION_DEFAULTS, f"{place}: model_cfg.vision_cfg")
    text = _settings(model["text_cfg"], _TEXT_DEFAULTS, f"{place}: model_cfg.text_cfg")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    pooling = {"argmax": ARGMAX_POOLING, "eos": text["eos_id"]}
    if text["pool_type"] not in pooling:
        raise VlmEdgeError(
            f"{place}: model_cfg.text_cfg.pool_type: {text['pool_type']!r}; CLIPModel has {', '.join(pooling)}",
            "load such a model with a family of its own: see docs/writing-a-family.md",
        )
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model["embed_dim"],
        "vision_config": {
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": activation,
            "projection_dim": model["embed_dim"],
        },
        "text_config": {
            "hidden_size": text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "intermediate_size": int(text["width"] * text["mlp_ratio"]),
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "hidden_act": activation,
            "projection_dim": model["embed_dim"],
            "eos_token_id": pooling[text["pool_type"]],
        },
    }


def _settings(given: Mapping[str, Any], defaults: Mapping[str, Any], place: str) -> dict[str, Any]:
    """``given`` over ``defaults``; what CLIPModel can't follow is refused."""
    for name, value in given.items():
        if name not in defaults and value not in _SAME_AS_CLIP.get(name, (None, False)):
            raise VlmEdgeError(
                f"{place}.{name}: {value!r}; CLIPModel has no such setting",
                "load such a model with a family of its own: see docs/writing-a-family.md",
            )
    return {**defaults, **{name: value for name, value in given.items() if name in defaults}}


def image_processor(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """``preprocess_cfg`` as the settings of a CLIPImageProcessor; the defaults are open_clip's.

    Raises:
        VlmEdgeError: ``resize_mode`` is ``longest``.
    """
    asked = settings.get("preprocess_cfg") or {}
    size = int(config["vision_config"]["image_size"])
    square = {"height": size, "width": size}
    mode = asked.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise VlmEdgeError(
            f"{CONFIG_NAME}: preprocess_cfg.resize_mode: {mode!r}; shortest and squash can be done", "set one of these"
        )
    return {
        "size": {"shortest_edge": size} if mode == "shortest" else square,
        "do_center_crop": mode == "shortest",
        "crop_size": square,
        "resample": 2 if asked.get("interpolation") == "bilinear" else 3,
        "image_mean": asked.get("mean", [0.48145466, 0.4578275, 0.40821073]),
        "image_std": asked.get("std", [0.26862954, 0.26130258, 0.27577711]),
    }


def is_open_clip(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have open_clip's names."""
    return "visual.conv1.weight" in state


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors under CLIPModel's names; the fused query, key and value apart."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.rpartition(".")[2] == "attn_mask":
            continue  # a constant that old versions saved
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if ".in_proj_" in name:
            parts = zip(("q", "k", "v"), tensor.chunk(3), strict=True)
            renamed |= {name.replace(".in_proj_", f".{part}_proj."): value for part, value in parts}
        else:
            renamed[name] = tensor.T if name in _TRANSPOSED else tensor
    return renamed
