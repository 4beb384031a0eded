"""A checkpoint's chat template, found and run. It is a program (Jinja2) of whoever made the checkpoint.

transformers runs it in Jinja2's sandbox, which keeps it from files and Python's internals, not from running for ever or
filling the memory. So it runs in a child process with limits, once for all texts that are wanted.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from vlm_edge.checkpoints.config import read_json_object
from vlm_edge.errors import VlmEdgeError

SECONDS = 20
"""Most time that a template may take for all of its texts; real ones take milliseconds."""
BYTES = 512 << 20
"""Most memory that it may take, beside the memory of the process."""
LETTERS = 100_000
"""Most characters of one text."""
_DATE = "26 Jul 2024"
"""What templates that write today's date get, so that the same checkpoint gives the same bytes: Llama 3.2's default."""
_HINT = "compare it with the one on the model's page"


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
