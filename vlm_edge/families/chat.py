"""A checkpoint's chat template, as data: the text of one turn about 0 to 10 images.

A template is a program (Jinja2). What it writes for one question about n images differs only in the question, so it is
run here once for each n and the runtime fills the question in: the device needs no Jinja2. Not covered: more than one
turn, a system message, and images between words; a caller who wants these gives the runtime a whole prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Prompt

MAX_IMAGES = 10
QUESTION = "{question}"
FIRST = "{bos}"
"""Where a fallback layout has the tokenizer's first token."""
_WORD = "zqquestionqz"
"""Stands for the question while a template runs; no template contains it or knows it."""
_DATE = "26 Jul 2024"
"""What templates that write today's date get, so that the same checkpoint gives the same bytes: Llama 3.2's default."""


def chat_template(checkpoint: Path) -> str | None:
    """The template of a checkpoint folder, from the first of the files that transformers looks into."""
    jinja = checkpoint / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = checkpoint / name
        template = json.loads(path.read_bytes()).get("chat_template") if path.is_file() else None
        if isinstance(template, list):  # several templates by name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if isinstance(template, str):
            return template
    return None


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
    template = chat_template(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    if template is None:
        if fallback is None:
            raise VlmEdgeError(
                f"{checkpoint}: no chat template", "copy chat_template.jinja from the model's page into the folder"
            )
        layouts = tuple(layout.replace(FIRST, tokenizer.bos_token or "") for layout in fallback)
        strip, starts = fallback_strip, not fallback_special_tokens
    else:
        layouts = tuple(_layout(checkpoint, template, tokenizer, images) for images in range(MAX_IMAGES + 1))
        strip = _turn(template, tokenizer, 1, f"  {_WORD}  ") == _turn(template, tokenizer, 1, _WORD)
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


def _layout(checkpoint: Path, template: str, tokenizer: Any, images: int) -> str:
    try:
        text = _turn(template, tokenizer, images, _WORD)
    except (TemplateError, TypeError, ValueError) as error:
        raise VlmEdgeError(
            f"{checkpoint}: the chat template can't be run for one question about {images} images: {error}",
            "compare chat_template.jinja with the one on the model's page",
        ) from error
    return text.replace(_WORD, QUESTION)


def _turn(template: str, tokenizer: Any, images: int, question: str) -> str:
    """One user turn, images first, and the start of the answer, as ``processor.apply_chat_template`` renders it."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    rendered, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": content}]],
        chat_template=template,
        add_generation_prompt=True,
        date_string=_DATE,
        **tokenizer.special_tokens_map,
    )
    text: str = rendered[0]
    return text
