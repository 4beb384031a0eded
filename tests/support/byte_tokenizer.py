"""A tokenizer of single bytes and special tokens, for language models with random weights: no text is unknown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

BYTES = 256
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def write_byte_tokenizer(folder: Path, special: Sequence[str] = (), *, bos: bool = True, template: str = "") -> int:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``; the number of tokens. Their ids: the bytes (in the order
    of GPT-2's alphabet), then <s>, </s>, <pad>, then ``special``. ``bos``: every text starts with <s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (BOS, EOS, PAD)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BYTES)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": 4096,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return tokenizer.get_vocab_size()


def token_id(special: Sequence[str], token: str) -> int:
    """The id of one of ``special`` (or of <s>, </s>, <pad>)."""
    return BYTES + (BOS, EOS, PAD, *special).index(token)
