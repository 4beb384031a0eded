"""SigLIP's SentencePiece file as tokenizer.json, which the device reads.

    python -m vlm_edge.checkpoints.spiece FOLDER

SigLIP's texts are put in canonical form (big_vision's prompt_engineering.py: lower case, no ASCII punctuation, single
spaces), then cut by a unigram model (Kudo 2018, arXiv:1804.10959); ``</s>`` ends them. transformers' SiglipTokenizer
does this in Python with the sentencepiece package; here tokenizers does it, by the same file. Only texts that spell a
special token come out otherwise.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vlm_edge.errors import VlmEdgeError

MODEL_NAME = "spiece.model"
UNIGRAM = 1
"""``trainer_spec.model_type`` of sentencepiece_model.proto."""
END, UNKNOWN, SPACE = "</s>", "<unk>", "\u2581"


def siglip_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a ``spiece.model`` of SigLIP.

    Raises:
        VlmEdgeError: the file is not SentencePiece's, no unigram model, or has no ``</s>`` or ``<unk>``.
    """
    proto = _read(path)
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    names = [piece for piece, _ in vocabulary]
    if proto.trainer_spec.model_type != UNIGRAM or END not in names or UNKNOWN not in names:
        raise VlmEdgeError(
            f"{path}: no unigram model with {END} and {UNKNOWN}, as SigLIP's is", "copy it from the model's page again"
        )
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=names.index(UNKNOWN), byte_fallback=False))
    characters = proto.normalizer_spec.precompiled_charsmap
    punctuation = "".join(f"\\{character}" for character in string.punctuation)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(SPACE, " "),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(f"[{punctuation}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(left=False),
            normalizers.Prepend(SPACE),
            *([normalizers.Precompiled(characters)] if characters else []),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(f"[ {SPACE}]+$"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    special = [AddedToken(name, lstrip=True, rstrip=True, normalized=False, special=True) for name in (END, UNKNOWN)]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, names.index(END))]
    )
    return tokenizer


def _read(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from transformers.utils import sentencepiece_model_pb2_new as schema

    proto = schema.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise VlmEdgeError(f"{path}: no SentencePiece file: {error}", "copy it from the model's page") from error
    return proto


def main(folder: Path) -> None:
    """Write ``folder/tokenizer.json``."""
    siglip_tokenizer(folder / MODEL_NAME).save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
