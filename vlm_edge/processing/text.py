"""Text to token ids and back, through ``tokenizer.json``, without transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, normalizers
from tokenizers import Tokenizer as JsonTokenizer

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import TextProcessing
from vlm_edge.processing.tokenizer_file import read_tokenizer, rust_errors

Ids = NDArray[np.int64]
MOST_CHARACTERS = 1 << 20
"""Of one text, image tokens included: more than any model on a device reads."""


class Tokenizer:
    """Encodes as the model's transformers tokenizer does: special tokens added, padded. A text of more tokens than the
    model reads is refused, or cut where that is asked for.

    Args:
        folder: where ``spec.tokenizer`` lies.
        spec: padding and length. The model reads ``max_length`` tokens, or ``pad_to`` if that is less.

    Raises:
        VlmEdgeError: the tokenizer file is missing or no ``tokenizer.json``, or holds what
            :mod:`vlm_edge.processing.tokenizer_file` refuses.
    """

    def __init__(self, folder: Path, spec: TextProcessing) -> None:
        self.spec = spec
        self.folder = folder
        self._path = folder / spec.tokenizer
        self._tokenizer = read_tokenizer(self._path)
        if spec.lowercase:
            others = [self._tokenizer.normalizer] if self._tokenizer.normalizer else []
            self._tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])
        self._tokenizer.no_padding()
        self.longest = spec.max_length if spec.pad_to is None else min(spec.max_length, spec.pad_to)
        """Tokens that the model reads of one text."""
        with rust_errors(str(self._path)):  # fewer than its own special tokens
            self._tokenizer.enable_truncation(self.longest)

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below this."""
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], *, special_tokens: bool = True, cut: bool = False) -> tuple[Ids, Ids]:
        """Texts -> ``input_ids`` and ``attention_mask``, each (texts, tokens) int64; the mask is 0 at padding.

        Args:
            texts: what to encode.
            special_tokens: False leaves out what the tokenizer puts around a text.
            cut: leave out what is too much at the end of a text, instead of refusing it.

        Raises:
            VlmEdgeError: a text is no valid Unicode string, holds more than the task that it names, or has more tokens
                than the model reads.
        """
        texts = [self._worded(text) for text in texts] if self.spec.tasks else list(texts)
        encodings = self._encodings(texts, special_tokens)
        rows = [encoding.ids for encoding in encodings]
        for text, encoding in zip(texts, encodings, strict=True):
            if len(encoding) > self.longest or (encoding.overflowing and not cut):
                raise self._too_long(text, special_tokens)
        tokens = self.spec.pad_to or max(map(len, rows), default=0)
        input_ids = np.full((len(rows), tokens), self.spec.pad_token_id, np.int64)
        attention_mask = np.full((len(rows), tokens), 0 if self.spec.mask_padding else 1, np.int64)
        for index, row in enumerate(rows):
            start = tokens - len(row) if self.spec.padding_side == "left" else 0
            input_ids[index, start : start + len(row)] = row
            attention_mask[index, start : start + len(row)] = 1
        return input_ids, attention_mask

    def count_too_long(self, texts: Sequence[str]) -> int:
        """The number of texts that have more tokens than the model reads."""
        return sum(bool(encoding.overflowing) for encoding in self._encodings(list(texts), True))

    def _encodings(self, texts: Sequence[str], special_tokens: bool) -> Sequence[Encoding]:
        for text in texts:
            if isinstance(text, str) and len(text) > MOST_CHARACTERS:
                raise VlmEdgeError(
                    f"{_begins(text)}: {len(text)} characters; a text has at most {MOST_CHARACTERS}", "ask for less"
                )
        try:
            with rust_errors(str(self._path)):
                if len(texts) == 1:
                    return [self._tokenizer.encode(texts[0], add_special_tokens=special_tokens)]
                return self._tokenizer.encode_batch_fast(texts, add_special_tokens=special_tokens)
        except TypeError as error:
            raise VlmEdgeError(f"a text is no valid Unicode string: {texts!r}", "give it as UTF-8") from error

    def _too_long(self, text: str, special_tokens: bool) -> VlmEdgeError:
        whole = JsonTokenizer.from_str(self._tokenizer.to_str())
        whole.no_truncation()
        count = len(whole.encode(text, add_special_tokens=special_tokens).ids)
        return VlmEdgeError(
            f"{_begins(text)}: {count} tokens; this model reads at most {self.longest}",
            "ask about fewer or smaller images, or ask in fewer words",
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text, special tokens (or the spec's ``dropped_token_ids``) left out, no space at either end."""
        dropped = self.spec.dropped_token_ids
        kept = ids if dropped is None else [index for index in ids if index not in dropped]
        with rust_errors(str(self._path)):
            return self._tokenizer.decode(kept, skip_special_tokens=dropped is None).strip()

    def _worded(self, text: str) -> str:
        """The prompt of the task that a text names; any other text as it is."""
        for task, prompt in self.spec.tasks.items():
            if task in text:
                rest = text.replace(task, "").strip()
                if rest and "{input}" not in prompt:
                    raise VlmEdgeError(f"{text!r}: the task {task} takes no further text", f"give {task} alone")
                return prompt.replace("{input}", rest)
        return text


def _begins(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
