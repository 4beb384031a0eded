"""A checkpoint's chat template, as data: the text of one turn about 0 to 10 images.

A template is a program (Jinja2). Its texts for one question about n images differ only in the question, so it is run
here once for each n, and the runtime fills the question in: the device needs no Jinja2. Not covered: more than one
turn, a system message, and images between words; a caller who wants these gives the runtime a whole prompt.

transformers runs it in Jinja2's sandbox, which keeps it from files and Python's internals, not from running for ever or
filling the memory. So it runs in a child process with limits, once for all texts that are wanted.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from vlm_edge.checkpoints.config import read_json_object
from vlm_edge.checkpoints.pretrained import load_tokenizer
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Prompt

MAX_IMAGES = 10
QUESTION = "{question}"
FIRST = "{bos}"
"""Stands for the tokenizer's first token in a fallback layout."""
_WORD = "zqquestionqz"
"""Stands for the question while a template runs; no template contains it or knows it."""
SECONDS = 20
"""Most time that a template may take for all of its texts; real ones take milliseconds."""
BYTES = 512 << 20
"""Most memory that it may take, beside the memory of the process."""
LETTERS = 100_000
"""Most characters of one text."""
_DATE = "26 Jul 2024"
"""The date for templates that write today's, so that the same checkpoint gives the same bytes: Llama 3.2's default."""
_HINT = "compare it with the one on the model's page"


@dataclass(frozen=True)
class Fallback:
    """The prompt of a checkpoint without a chat template: layouts for 0, 1, .. images, as the model was trained on.

    ``special_tokens``: the tokenizer adds its own. ``strip``: spaces around the question are left out.
    """

    layouts: tuple[str, ...]
    special_tokens: bool = True
    strip: bool = False


def read_prompt(
    checkpoint: Path, image_token: str, image_token_id: int, image_tokens: int, fallback: Fallback | None = None
) -> Prompt:
    """The prompt of one question about images: the checkpoint's chat template, or ``fallback``.

    Args:
        checkpoint: the folder.
        image_token: stands for an image in the template's text.
        image_token_id: its id.
        image_tokens: places that an image (or tile) takes.
        fallback: for a checkpoint without a template.

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
        layouts = tuple(layout.replace(FIRST, tokenizer.bos_token or "") for layout in fallback.layouts)
        strip, starts = fallback.strip, not fallback.special_tokens
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
    )


def chat_template(checkpoint: Path) -> tuple[Path, str] | None:
    """The template of a checkpoint folder and its file, the first of those that transformers looks into.

    Raises:
        VlmEdgeError: the file can't be read, or its ``chat_template`` is no text.
    """
    path = checkpoint / "chat_template.jinja"
    if path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise VlmEdgeError(f"{path}: can't be read as UTF-8: {error}", _HINT) from error
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = checkpoint / name
        template = read_json_object(path).get("chat_template") if path.is_file() else None
        if isinstance(template, list):  # several templates by name
            named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
            template = named[0].get("template") if named else None
        if template is not None and not isinstance(template, str):
            raise VlmEdgeError(f"{path}: chat_template: must be text, got {type(template).__name__}", _HINT)
        if template is not None:
            return path, template
    return None


def run_template(
    path: Path, template: str, special_tokens: Mapping[str, str], turns: Sequence[tuple[int, str]]
) -> list[str]:
    """One user turn for each number of images and question: images first, then the start of the answer, as
    ``processor.apply_chat_template`` renders it.

    Raises:
        VlmEdgeError: the template fails, or takes more time, memory or letters than any real one; ``path`` is named.
    """
    context = multiprocessing.get_context("fork")  # what is loaded is there at once; the child runs Python alone
    ours, childs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(childs, template, dict(special_tokens), list(turns)), daemon=True)
    child.start()
    childs.close()
    try:
        failure, texts = ours.recv() if ours.poll(SECONDS) else (f"it runs for more than {SECONDS} s", [])
    except (EOFError, OSError):
        failure, texts = "it was ended by the system", []
    finally:
        child.kill()
        child.join()
        ours.close()
    if failure:
        images = turns[len(texts)][0]
        raise VlmEdgeError(
            f"{path}: the chat template can't be run for one question about {images} images: {failure}", _HINT
        )
    return list(texts)


def _work(pipe: Connection, template: str, special_tokens: dict[str, str], turns: list[tuple[int, str]]) -> None:
    """In the child: render all turns under limits; send (what failed or "", the texts before it)."""
    texts: list[str] = []
    failure = ""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").is_file() else 0
        if pages:
            limit = pages * resource.getpagesize() + BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for images, question in turns:
            text = _turn(template, special_tokens, images, question)
            if len(text) > LETTERS:
                failure = f"it writes {len(text):,} letters; at most {LETTERS:,} are taken"
                break
            texts.append(text)
    except Exception as error:  # a template is a program: it may raise anything
        failure = f"{type(error).__name__}: {str(error)[:300]}" if str(error) else type(error).__name__
    pipe.send((failure, texts))


def _turn(template: str, special_tokens: dict[str, str], images: int, question: str) -> str:
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    rendered: Any
    rendered, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": content}]],
        chat_template=template,
        add_generation_prompt=True,
        date_string=_DATE,
        **special_tokens,
    )
    text: str = rendered[0]
    return text
