"""Text to token ids and back, through ``tokenizer.json``, without transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import TextProcessing

Ids = NDArray[np.int64]


class TextEncoder:
    """Encodes as the model's transformers tokenizer does: special tokens added, cut at ``max_length``, padded.

    Args:
        folder: where ``spec.tokenizer`` lies.
        spec: padding and length; texts longer than ``pad_to`` are cut there too.

    Raises:
        VlmEdgeError: the tokenizer file is missing or no ``tokenizer.json``.
    """

    def __init__(self, folder: Path, spec: TextProcessing) -> None:
        self.spec = spec
        self.folder = folder
        self._tokenizer = _read_tokenizer(folder / spec.tokenizer)
        if spec.lowercase:
            others = [self._tokenizer.normalizer] if self._tokenizer.normalizer else []
            self._tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])
        self._tokenizer.no_padding()
        length = spec.max_length if spec.pad_to is None else min(spec.max_length, spec.pad_to)
        self._tokenizer.enable_truncation(length)

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below this."""
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], *, special_tokens: bool = True) -> tuple[Ids, Ids]:
        """Texts -> ``input_ids`` and ``attention_mask``, each (texts, tokens) int64; the mask is 0 at padding.

        ``special_tokens=False`` leaves out what the tokenizer puts around a text.

        Raises:
            VlmEdgeError: a text is no valid Unicode string, or holds more than the task that it names.
        """
        texts = [self._worded(text) for text in texts] if self.spec.tasks else texts
        try:
            if len(texts) == 1:
                rows = [self._tokenizer.encode(texts[0], add_special_tokens=special_tokens).ids]
            else:
                encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
                rows = [encoding.ids for encoding in encodings]
        except TypeError as error:
            raise VlmEdgeError(f"a text is no valid Unicode string: {list(texts)!r}", "give it as UTF-8") from error
        lengths = [len(row) for row in rows]
        tokens = self.spec.pad_to or max(lengths, default=0)
        input_ids = np.full((len(rows), tokens), self.spec.pad_token_id, np.int64)
        attention_mask = np.full((len(rows), tokens), 0 if self.spec.mask_padding else 1, np.int64)
        for index, row in enumerate(rows):
            start = tokens - len(row) if self.spec.padding_side == "left" else 0
            input_ids[index, start : start + len(row)] = row
            attention_mask[index, start : start + len(row)] = 1
        return input_ids, attention_mask

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text, special tokens (or the spec's ``dropped_token_ids``) left out, no space at either end."""
        dropped = self.spec.dropped_token_ids
        if dropped is None:
            return self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        kept = [index for index in ids if index not in dropped]
        return self._tokenizer.decode(kept, skip_special_tokens=False).strip()

    def _worded(self, text: str) -> str:
        """The prompt that a text with a task's short form stands for; any other text as it is."""
        for task, prompt in self.spec.tasks.items():
            if task in text:
                rest = text.replace(task, "").strip()
                if rest and "{input}" not in prompt:
                    raise VlmEdgeError(f"{text!r}: the task {task} takes no further text", f"give {task} alone")
                return prompt.replace("{input}", rest)
        return text


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise VlmEdgeError(f"{path}: no such tokenizer file", "export the model again, or copy the whole folder")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise VlmEdgeError(f"{path}: not JSON: {error}", "export the model again, or copy the whole folder") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise VlmEdgeError(f"{path}: JSON without a tokenizer's `model`", "give a tokenizer.json of `tokenizers`")
    return Tokenizer.from_file(str(path))
