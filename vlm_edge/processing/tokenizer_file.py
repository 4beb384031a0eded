"""Check ``tokenizer.json`` before the ``tokenizers`` library reads it.

The library is Rust: memory that it can't get ends the process, what it takes for impossible is a panic, and nothing
ends a regular expression that goes through a text again and again. So a file may hold only the components that
transformers' fast tokenizers are made of, and none that multiplies a text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vlm_edge.errors import VlmEdgeError

MOST_BYTES = 1 << 26
"""Gemma's file, the largest of a public model, has 33 MB."""
MOST_GROWTH = 256
"""Most characters that a normalizer or decoder makes of one. SigLIP's SentencePiece normalizer makes up to 72."""
MOST_STEPS = 32
"""Of a normalizer, a pre-tokenizer, a post-processor or a decoder."""
_MOST_REPETITIONS = 4
"""In one alternative of a regular expression; those of public models have up to three."""
_HINT = (
    "take the tokenizer.json that transformers writes: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)

_NORMALIZERS = (
    "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Sequence Strip StripAccents"
)
_PRE_TOKENIZERS = (
    "BertPreTokenizer ByteLevel Digits Metaspace Punctuation Sequence Split UnicodeScripts Whitespace WhitespaceSplit"
)
_POST_PROCESSORS = "BertProcessing ByteLevel RobertaProcessing Sequence TemplateProcessing"
_DECODERS = "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Sequence Strip WordPiece"
_COMPONENTS = {
    "normalizer": (_NORMALIZERS.split(), "normalizers"),
    "pre_tokenizer": (_PRE_TOKENIZERS.split(), "pretokenizers"),
    "post_processor": (_POST_PROCESSORS.split(), "processors"),
    "decoder": (_DECODERS.split(), "decoders"),
}
"""Kind -> the types that there are, and what a Sequence calls its steps."""
_MODELS = (None, "BPE", "Unigram", "WordLevel", "WordPiece")


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
        VlmEdgeError: the file is missing, too large, no ``tokenizer.json``, or holds what is refused here.
    """
    if not path.is_file():
        raise VlmEdgeError(f"{path}: no such tokenizer file", "export the model again, or copy the whole folder")
    if path.stat().st_size > MOST_BYTES:
        raise VlmEdgeError(f"{path}: {path.stat().st_size} bytes; a tokenizer has at most {MOST_BYTES}", _HINT)
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise VlmEdgeError(f"{path}: not JSON: {error}", "export the model again, or copy the whole folder") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise VlmEdgeError(f"{path}: JSON without a tokenizer's `model`", "give a tokenizer.json of `tokenizers`")
    try:
        require_tame(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a part of another type than it has to be
        reason = error.args[0] if type(error) is ValueError else f"malformed ({error!r})"
        raise VlmEdgeError(f"{path}: {reason}", _HINT) from error
    with rust_errors(str(path)):
        return Tokenizer.from_buffer(raw)


@contextmanager
def rust_errors(where: str) -> Iterator[None]:
    """Turn what ``tokenizers`` raises into a :class:`VlmEdgeError`: ValueError, a bare Exception, or a panic's
    BaseException.

    Raises:
        VlmEdgeError: naming ``where``.
    """
    try:
        yield
    except BaseException as error:
        if type(error) not in (Exception, ValueError) and type(error).__name__ != "PanicException":
            raise
        raise VlmEdgeError(f"{where}: tokenizers can't work with it: {str(error)[:200]}", _HINT) from error


def require_tame(content: dict[str, Any]) -> None:
    """Refuse a content that the library should not be given.

    Raises:
        ValueError: it can't, and why. Other errors mean that a part is of another type than it has to be.
    """
    for kind, (_, nested) in _COMPONENTS.items():
        steps = list(_steps(kind, content.get(kind), nested))
        if len(steps) > MOST_STEPS:
            raise ValueError(f"{kind}: {len(steps)} steps, more than {MOST_STEPS}")
        growth = 1.0
        for step in steps:
            growth *= _growth(step)
            if growth > MOST_GROWTH:
                raise ValueError(f"{kind}: may make more than {MOST_GROWTH} characters of one")
            _require_tame_step(kind, step)
    model = content["model"]
    if model.get("type") not in _MODELS:
        raise ValueError(f"model: no type {str(model.get('type'))[:40]!r} is known here")
    if model.get("dropout"):
        raise ValueError("model.dropout: texts would become other tokens each time")
    if model.get("max_input_chars_per_word", 100) > 10_000:
        raise ValueError("model.max_input_chars_per_word: more than 10000")
    prefix = model.get("continuing_subword_prefix") if "merges" in model else None
    if prefix and not all(_pieces(merge)[1].startswith(prefix) for merge in model["merges"]):
        raise ValueError("model.merges: one goes on without the prefix of what goes on")
    if any(len(token["content"]) > 1024 for token in content.get("added_tokens") or ()):
        raise ValueError("added_tokens: one has more than 1024 characters")


def _pieces(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _steps(kind: str, component: Any, nested: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The component, or the steps of a Sequence."""
    if component is None:
        return
    if not isinstance(component, dict) or component.get("type") not in _COMPONENTS[kind][0] or depth > 8:
        found = str(component.get("type") if isinstance(component, dict) else component)[:40]
        raise ValueError(f"{kind}: no type {found!r} is known here" if depth <= 8 else f"{kind}: nested too deeply")
    if component["type"] != "Sequence":
        yield component
        return
    for part in component[nested]:
        yield from _steps(kind, part, nested, depth + 1)


def _growth(step: dict[str, Any]) -> float:
    """Most characters that a step makes of one; Unicode's own normalization forms are not counted."""
    if step["type"] == "Replace":
        text = step["pattern"].get("String")
        if text is None:
            return float(1 + len(step["content"]))  # it may match nothing, before every character
        if not text:
            raise ValueError("Replace: the empty pattern stands before every character")
        return max(1.0, len(step["content"]) / len(text))
    if step["type"] == "Precompiled":
        return _longest_piece(step["precompiled_charsmap"])
    return 2.0 if step["type"] == "ByteLevel" else 1.0


def _longest_piece(charsmap: str) -> float:
    """Of SentencePiece's precompiled map (a trie's size, the trie, then what it leads to, each ended by a zero)."""
    raw = base64.b64decode(charsmap, validate=True)
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 8 or size % 4 or 4 + size > len(raw):
        raise ValueError("normalizer: Precompiled: no map of SentencePiece's")
    return float(max(1, *map(len, raw[4 + size :].split(b"\0"))))


def _require_tame_step(kind: str, step: dict[str, Any]) -> None:
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and "Regex" in pattern:
        require_tame_regex(pattern["Regex"])
    if step["type"] == "Split" and not isinstance(pattern, dict):
        raise ValueError(f"{kind}: Split without a pattern")
    if step["type"] == "Prepend" and len(step["prepend"]) > 64:
        raise ValueError(f"{kind}: Prepend puts {len(step['prepend'])} characters before a text")
    if kind == "decoder" and step["type"] == "Strip" and (step["stop"] or step["start"] > 64):
        raise ValueError(f"{kind}: Strip takes more off than a token may have")
    if step["type"] == "TemplateProcessing":
        _require_tame_template(step)


def _require_tame_template(step: dict[str, Any]) -> None:
    """One place for the text, and special tokens that are there."""
    pieces, special = step["single"], step["special_tokens"]
    if len(pieces) > 64 or sum("Sequence" in piece for piece in pieces) != 1:
        raise ValueError("post_processor: TemplateProcessing: a template has the text once, and up to 63 tokens")
    for piece in pieces:
        if "SpecialToken" not in piece:
            continue
        name = piece["SpecialToken"]["id"]
        if name not in special or len(special[name]["ids"]) > 64:
            raise ValueError(f"post_processor: TemplateProcessing: {name[:40]!r} is none of its special tokens")


def require_tame_regex(pattern: str) -> None:
    """Refuse a regular expression that goes through a text in more than about one pass.

    Refused are repetitions of what repeats by itself, references back, and more than four repetitions in a row.

    Raises:
        ValueError: it may take a time that grows much faster than the text.
    """
    if len(pattern) > 4096:
        raise ValueError("a regular expression of more than 4096 characters")
    repeats, inside, row = [False], False, 0  # `repeats`: whether each open group, and the last closed one, repeats
    closed, index = False, 0
    while index < len(pattern):
        character = pattern[index]
        if character == "\\":
            following = pattern[index + 1 : index + 2]
            if not inside and ((following.isdigit() and following != "0") or following in "kg"):
                raise ValueError(f"the regular expression {pattern[:60]!r} refers back to what it matched")
            index, closed = index + 2, False
            continue
        if inside:
            inside = character != "]"
        elif character == "[":
            inside, closed = True, False
        elif character == "(":
            repeats.append(False)
        elif character == ")" and len(repeats) > 1:
            closed = repeats.pop()
            repeats[-1] = repeats[-1] or closed
            index += 1
            continue
        elif character == "|":
            row = 0
        elif (end := _repetition(pattern, index)) is not None:
            row += 1
            if closed or row > _MOST_REPETITIONS:
                raise ValueError(f"the regular expression {pattern[:60]!r} repeats what repeats")
            repeats[-1] = True
            index = end + (pattern[end : end + 1] in ("+", "?"))  # possessive, lazy
            continue
        if character not in "?":
            closed = False
        index += 1
        if len(repeats) > 16:
            raise ValueError("a regular expression of more than 16 groups in each other")


def _repetition(pattern: str, index: int) -> int | None:
    """End of a quantifier that repeats (``*``, ``+``, ``{2,}``), if one begins here."""
    if pattern[index] in "*+":
        return index + 1
    end = pattern.find("}", index)
    counts = pattern[index + 1 : end].split(",") if pattern[index] == "{" and end > index else []
    if not counts or not all(count.strip().isdigit() or not count.strip() for count in counts) or counts == [""]:
        return None
    return end + 1 if counts[-1].strip() not in ("0", "1") else None
