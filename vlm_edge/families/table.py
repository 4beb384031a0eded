"""The table of families, and the look-up by the architecture that config.json names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import Family
from vlm_edge.families.blip import BlipVqa
from vlm_edge.families.blip2 import Blip2
from vlm_edge.families.blip2_t5 import Blip2T5
from vlm_edge.families.blip_captioning import BlipCaptioning
from vlm_edge.families.blip_matching import BlipMatching
from vlm_edge.families.bridgetower import BridgeTower
from vlm_edge.families.clip import Clip
from vlm_edge.families.dinov2 import Dinov2
from vlm_edge.families.florence2 import Florence2
from vlm_edge.families.idefics import Idefics
from vlm_edge.families.idefics3 import Idefics3, SmolVlm
from vlm_edge.families.instructblip import InstructBlip
from vlm_edge.families.llava import Llava
from vlm_edge.families.llava_next import LlavaNext
from vlm_edge.families.mllama import Mllama
from vlm_edge.families.mobilevit import MobileVit, MobileVitV2
from vlm_edge.families.paligemma import PaliGemma
from vlm_edge.families.qwen2_vl import Qwen2Vl, Qwen25Vl
from vlm_edge.families.siglip import Siglip
from vlm_edge.families.siglip2_naflex import Siglip2NaFlex
from vlm_edge.families.vilt import Vilt
from vlm_edge.families.vision_encoder_decoder import VisionEncoderDecoder
from vlm_edge.families.vision_text_dual_encoder import VisionTextDualEncoder
from vlm_edge.names import near


def _by_name(families: Iterable[Family]) -> dict[str, Family]:
    """Index by name; a second entry of one name is an error, and of one architecture, unless it takes some configs."""
    named: dict[str, Family] = {}
    architectures: set[str] = set()
    for family in families:
        whole = set(family.architectures) if type(family).takes is Family.takes else set()
        if family.name in named or architectures & whole:
            raise ValueError(f"family {family.name!r} or one of its architectures is registered twice")
        named[family.name] = family
        architectures |= whole
    return named


FAMILIES: dict[str, Family] = _by_name(
    (
        BlipVqa(),
        BlipCaptioning(),
        Clip(),
        Siglip(),
        Siglip2NaFlex(),
        Vilt(),
        Llava(),
        LlavaNext(),
        Idefics3(),
        SmolVlm(),
        PaliGemma(),
        Qwen2Vl(),
        Qwen25Vl(),
        Mllama(),
        Idefics(),
        Blip2T5(),  # before Blip2: it takes some of its checkpoints
        Blip2(),
        InstructBlip(),
        Dinov2(),
        MobileVit(),
        MobileVitV2(),
        BlipMatching(),
        VisionEncoderDecoder(),
        Florence2(),
        VisionTextDualEncoder(),
        BridgeTower(),
    )
)

_REGIONS = "regions that an object detector found in the image (Faster R-CNN features and boxes)"
WITHOUT_IMAGES = {
    "LxmertForPreTraining": _REGIONS,
    "LxmertForQuestionAnswering": _REGIONS,
    "LxmertModel": _REGIONS,
    "VisualBertForMultipleChoice": _REGIONS,
    "VisualBertForQuestionAnswering": _REGIONS,
    "VisualBertForVisualReasoning": _REGIONS,
    "VisualBertModel": _REGIONS,
}
"""Vision-language models without a path from an image, and what they read instead."""


def family_for(architecture: str, config: Mapping[str, Any] | None = None) -> Family:
    """The family that loads ``architecture``, a class name from config.json, whose whole content ``config`` is.

    Raises:
        VlmEdgeError: no family does; the message lists near matches.
    """
    known = {name for family in FAMILIES.values() for name in family.architectures}
    for family in FAMILIES.values():
        if architecture in family.architectures and family.takes(config or {}):
            return family
    if architecture in WITHOUT_IMAGES:
        raise VlmEdgeError(
            f"{architecture} can't be exported: it reads {WITHOUT_IMAGES[architecture]}, not images",
            "take a model that sees the image itself, such as BLIP or BridgeTower",
        )
    raise VlmEdgeError(
        f"unknown architecture {architecture!r}; {near(architecture, known)}",
        "to add one, see docs/writing-a-family.md: one file in vlm_edge/families and one row in its table",
    )
