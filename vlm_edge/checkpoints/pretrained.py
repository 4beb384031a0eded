"""The one door to transformers' ``from_pretrained``: from a folder alone, and without running code that lies in it.

transformers asks on stdin whether to run such code unless it is told; :func:`load_pretrained` always tells it no, and a
test holds the package to this door. ``--trust-remote-code`` is for a model's own class (remote_code.py), never for
tokenizers and processors: the device runs none of their code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlm_edge.checkpoints.config import read_json_object
from vlm_edge.errors import VlmEdgeError

SIDE_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "chat_template.json", "generation_config.json",
)  # fmt: skip
"""Files that transformers reads beside config.json; each is a JSON object."""


def check_side_files(folder: Path) -> None:
    """
    Raises:
        VlmEdgeError: one of :data:`SIDE_FILES` is there and no JSON object.
    """
    for name in SIDE_FILES:
        if (folder / name).is_file():
            read_json_object(folder / name)


def load_pretrained(loader: Any, folder: Path, what: str, hint: str, **settings: Any) -> Any:
    """``loader.from_pretrained(folder, **settings)``; errors name the folder and say ``what`` is wrong.

    Raises:
        VlmEdgeError: transformers can't read it.
        ImportError: the loader's class is code over a package that is not installed.
    """
    check_side_files(folder)
    told = {"trust_remote_code": False} if loader.__name__.startswith("Auto") else {}
    try:
        return loader.from_pretrained(folder, local_files_only=True, **told, **settings)
    except ImportError:
        raise
    except Exception as error:  # over a malformed value transformers raises any kind, and tokenizers plain Exception
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise VlmEdgeError(f"{folder}: {what}: {lines[0][:300]}", hint) from error


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder.

    It is made of tokenizer.json alone where its own class needs a package that isn't there (SiglipTokenizer needs
    sentencepiece), or is code that comes with the checkpoint.

    Raises:
        VlmEdgeError: it can't be read.
    """
    what, hint = "the tokenizer can't be read", "copy tokenizer.json and tokenizer_config.json from the model's page"
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and read_json_object(settings).get("auto_map"):
        return load_pretrained(PreTrainedTokenizerFast, folder, what, hint)
    try:
        return load_pretrained(AutoTokenizer, folder, what, hint)
    except ImportError:
        return load_pretrained(PreTrainedTokenizerFast, folder, what, hint)
