"""A small model with random weights of every family, by the name of its row in docs/families.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tiny_blip
import tiny_blip2
import tiny_blip2_t5
import tiny_bridgetower
import tiny_dual_encoders
import tiny_encoder_decoder
import tiny_florence2
import tiny_idefics
import tiny_idefics3
import tiny_instructblip
import tiny_llava
import tiny_llava_next
import tiny_mllama
import tiny_paligemma
import tiny_qwen2_vl
import tiny_towers
import tiny_vilt
import transformers


@dataclass(frozen=True)
class Tiny:
    """The family that loads it, what writes its checkpoint into a folder, and transformers' class of it."""

    family: str
    write: Callable[[Path], Path]
    model: Any


def _tower(family: str, case: str) -> Tiny:
    return Tiny(family, partial(tiny_towers.checkpoint_of, name=case), tiny_towers.CASES[case].model)


def _encoder_decoder(case: str) -> Tiny:
    write = partial(tiny_encoder_decoder.checkpoint_of, case=tiny_encoder_decoder.CASES[case])
    return Tiny("vision-encoder-decoder", write, tiny_encoder_decoder.MODEL)


def _blip(family: str, model: Any) -> Tiny:
    return Tiny(family, partial(tiny_blip.checkpoint_of, model=model), model)


TINY = {
    "BLIP, questions": _blip("blip-vqa", tiny_blip.VQA),
    "BLIP, captions": _blip("blip-captioning", tiny_blip.CAPTIONING),
    "BLIP, image-text matching": _blip("blip-matching", tiny_blip.MATCHING),
    "BLIP-2, OPT": Tiny("blip-2", tiny_blip2.checkpoint_of, tiny_blip2.MODEL),
    "BLIP-2, OPT-350M": Tiny("blip-2", partial(tiny_blip2.checkpoint_of, language="opt-350m"), tiny_blip2.MODEL),
    "BLIP-2, T5": Tiny("blip-2-t5", tiny_blip2_t5.checkpoint_of, tiny_blip2_t5.MODEL),
    "InstructBLIP, Vicuna": Tiny("instructblip", tiny_instructblip.checkpoint_of, tiny_instructblip.MODEL),
    "LLaVA-1.5": Tiny("llava", partial(tiny_llava.checkpoint_of, num_key_value_heads=2), tiny_llava.MODEL),
    "LLaVA-NeXT": Tiny("llava-next", tiny_llava_next.checkpoint_of, tiny_llava_next.MODEL),
    "Idefics3": Tiny("idefics3", tiny_idefics3.checkpoint_of, tiny_idefics3.MODEL),
    "SmolVLM": Tiny(
        "smolvlm",
        partial(tiny_idefics3.checkpoint_of, model=transformers.SmolVLMForConditionalGeneration),
        transformers.SmolVLMForConditionalGeneration,
    ),
    "Idefics": Tiny("idefics", tiny_idefics.checkpoint_of, tiny_idefics.MODEL),
    "Mllama (Llama 3.2 Vision)": Tiny("mllama", tiny_mllama.checkpoint_of, tiny_mllama.MODEL),
    "Florence-2": Tiny("florence2", tiny_florence2.checkpoint_of, tiny_florence2.MODEL),
    "Qwen2-VL": Tiny(
        "qwen2-vl", partial(tiny_qwen2_vl.checkpoint_of, name="qwen2-vl"), tiny_qwen2_vl.MODELS["qwen2-vl"]
    ),
    "Qwen2.5-VL": Tiny("qwen2.5-vl", tiny_qwen2_vl.checkpoint_of, tiny_qwen2_vl.MODELS["qwen2.5-vl"]),
    "PaliGemma, Gemma": Tiny("paligemma", tiny_paligemma.checkpoint_of, tiny_paligemma.MODEL),
    "PaliGemma, Gemma 2": Tiny(
        "paligemma", partial(tiny_paligemma.checkpoint_of, gemma="gemma2"), tiny_paligemma.MODEL
    ),
    "TrOCR": _encoder_decoder("trocr"),
    "ViT-GPT2": _encoder_decoder("gpt2"),
    "CLIP": Tiny("clip", tiny_dual_encoders.clip_of, transformers.CLIPModel),
    "SigLIP": Tiny("siglip", tiny_dual_encoders.siglip_of, transformers.SiglipModel),
    "SigLIP 2 NaFlex": Tiny("siglip2-naflex", tiny_dual_encoders.naflex_of, transformers.Siglip2Model),
    "ViT beside BERT": Tiny(
        "vision-text-dual-encoder", tiny_dual_encoders.vision_text_of, transformers.VisionTextDualEncoderModel
    ),
    "ViLT, questions": Tiny("vilt", tiny_vilt.checkpoint_of, tiny_vilt.MODEL),
    "BridgeTower": Tiny("bridgetower", tiny_bridgetower.checkpoint_of, tiny_bridgetower.MODEL),
    "DINOv2": _tower("dinov2", "dinov2"),
    "DINOv2, classes": _tower("dinov2", "dinov2 classes"),
    "MobileViT, classes": _tower("mobilevit", "mobilevit"),
    "MobileViT v2": _tower("mobilevitv2", "mobilevitv2"),
}
