"""A WordPiece tokenizer for models with random weights: words of visual questions, characters, and made-up words."""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
"""Their ids are their places here. Texts are framed by [CLS] and [SEP]; [DEC] starts an answer."""
_WORDS = """
    a an the is are of in this there what which how many color shape photo picture image
    yes no black blue brown gray green red teal yellow circle rectangle triangle square
"""


def write_tokenizer(folder: Path, vocabulary: int, max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``: exactly ``vocabulary`` tokens, so that every id that a
    model with as many can generate is a word."""
    characters = string.ascii_lowercase + string.digits
    tokens = [*SPECIAL_TOKENS, *_WORDS.split(), *characters, *string.punctuation, *(f"##{c}" for c in characters)]
    tokens = list(dict.fromkeys(tokens))[:vocabulary]
    tokens += [f"word{index}" for index in range(len(tokens), vocabulary)]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token")
    settings: dict[str, str | int] = dict(zip(names, SPECIAL_TOKENS, strict=True))
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
