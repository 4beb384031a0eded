"""Language models that see images: 32 tokens of answers about no, one and several images, against ``generate``."""

from __future__ import annotations

from typing import Any, NamedTuple

import tiny_vlm
from family_checkpoints import Exported

from vlm_edge.runtime import Request

FIRST, NONE, ALL, REST = slice(0, 1), slice(0, 0), slice(None), slice(1, None)


class Case(NamedTuple):
    """``differs`` is the remark in docs/families.md, ``sizes`` those of the images that ``asked`` takes parts of."""

    differs: str
    sizes: list[tuple[int, int]]
    asked: tuple[tuple[str, slice], ...] = (
        ("what is it?", FIRST), ("hello", NONE), ("how many?", ALL), ("which one?", REST),
    )  # fmt: skip
    parted: str = ""
    """A whole prompt about all images, in place of the last question."""


WIDE, SMALL, SQUARE = [(40, 33), (64, 100), (31, 90)], [(40, 33), (30, 100), (20, 20)], [(40, 33), (30, 100), (31, 31)]
PROMPT = "one prompt, `Question: .. Answer:`; language models: OPT and Llama's"
CUT = "as LLaVA-1.5; the runtime cuts the tiles and writes their rows and columns"
PATCHES, PATCH_SIZES = "as LLaVA-1.5; one image a run of the vision encoder; no videos", [(40, 33), (30, 100), (9, 9)]
PREFIX = "the prompt is the images and the question, as its processor writes it"
CASES = {
    "LLaVA-1.5": Case(
        "the chat template is run at export, for one turn about 0 to 10 images",
        WIDE,
        (("what is it?", FIRST), ("hello", NONE), ("how many are there ?", ALL), ("", REST)),
    ),
    "LLaVA-NeXT": Case(  # prompts of more tokens than its sliding window are among these
        "as LLaVA-1.5; tiles are cut and joined by the runtime",
        [(40, 33), (64, 100), (31, 200), (20, 20)],
        (("what is it?", slice(2, 3)), ("hello", NONE), ("how many?", ALL), ("which one?", slice(1, 3))),
    ),
    "Idefics3": Case(CUT, SQUARE),
    "SmolVLM": Case(CUT, SQUARE),
    "PaliGemma, Gemma": Case(PREFIX, WIDE),
    "PaliGemma, Gemma 2": Case(PREFIX, WIDE),  # longer than its window, across which the prefix sees itself
    "Qwen2-VL": Case(PATCHES, PATCH_SIZES),
    "Qwen2.5-VL": Case(PATCHES, PATCH_SIZES),
    "Mllama (Llama 3.2 Vision)": Case(
        "as LLaVA-1.5; keys and values of an image are computed once, by the connector",
        SMALL,
        parted="<s>first <|image|> then <|image|><|image|> all",
    ),
    "Idefics": Case(
        "the prompt is what its processor writes for one turn",
        SMALL,
        parted="<s>first <image> then <image> and <image> all",
    ),
    "BLIP-2, OPT": Case(PROMPT, SMALL),
    "BLIP-2, OPT-350M": Case(PROMPT, SMALL),
    "InstructBLIP, Vicuna": Case(
        "the connector runs once for every question about an image; Flan-T5 is refused",
        SMALL,
        (("what is it?", FIRST), ("hello", NONE), ("how many red shapes?", ALL), ("which one?", REST)),
    ),
}
SUBJECTS = list(CASES)


def test_answers_are_generates(subject: Exported, families_page: Any) -> None:
    case = CASES[subject.name]
    images = tiny_vlm.photos(0, case.sizes)
    requests = [Request(question, images[part]) for question, part in case.asked]
    if case.parted:
        requests[-1] = Request(images=images, prompt=case.parted)
    families_page(case.differs, tokens=tiny_vlm.check_answers(subject, requests))
