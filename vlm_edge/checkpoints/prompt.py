"""A checkpoint's chat template, as data: the text of one turn about 0 to 10 images.

A template is a program (Jinja2). What it writes for one question about n images differs only in the question, so it is
run here once for each n and the runtime fills the question in: the device needs no Jinja2. Not covered: more than one
turn, a system message, and images between words; a caller who wants these gives the runtime a whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlm_edge.checkpoints.chat_template import chat_template, run_template
from vlm_edge.checkpoints.pretrained import load_tokenizer
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Prompt

MAX_IMAGES = 10
QUESTION = "{question}"
FIRST = "{bos}"
"""Where a fallback layout has the tokenizer's first token."""
_WORD = "zqquestionqz"
"""Stands for the question while a template runs; no template contains it or knows it."""


def read_prompt(
    checkpoint: Path,
    *,
    image_token: str,
    image_token_id: int,
    image_tokens: int,
    fallback: Sequence[str] | None = None,
    fallback_special_tokens: bool = True,
    fallback_strip: bool = False,
    image_reach: Literal["group", "last"] | None = None,
) -> Prompt:
    """How the model is asked about images: its chat template, or ``fallback`` (the layouts it was trained on).

    Raises:
        VlmEdgeError: there is neither, or the template can't be run or says something that layouts can't.
    """
    found = chat_template(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    if found is None:
        if fallback is None:
            raise VlmEdgeError(
                f"{checkpoint}: no chat template", "copy chat_template.jinja from the model's page into the folder"
            )
        layouts = tuple(layout.replace(FIRST, tokenizer.bos_token or "") for layout in fallback)
        strip, starts = fallback_strip, not fallback_special_tokens
    else:
        turns = [*((images, _WORD) for images in range(MAX_IMAGES + 1)), (1, f"  {_WORD}  ")]
        *texts, spaced = run_template(*found, tokenizer.special_tokens_map, turns)
        layouts = tuple(text.replace(_WORD, QUESTION) for text in texts)
        strip = spaced == texts[1]
        starts = tokenizer.bos_token is not None and layouts[1].startswith(tokenizer.bos_token)
    for images, layout in enumerate(layouts):
        if layout.count(image_token) != images or layout.count(QUESTION) != 1:
            raise VlmEdgeError(
                f"{checkpoint}: the chat template writes {layout!r} for {images} images: expected the question once "
                f"and {image_token!r} {images} times",
                "compare chat_template.jinja with the one on the model's page",
            )
    return Prompt(
        layouts=layouts,
        image_token=image_token,
        image_token_id=image_token_id,
        image_tokens=image_tokens,
        strip_question=strip,
        special_tokens=not starts,
        image_reach=image_reach,
    )
