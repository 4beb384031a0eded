"""SigLIP's SentencePiece file as tokenizer.json, against what transformers' SiglipTokenizer gave."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from family_checkpoints import change_json
from tiny_dual_encoders import siglip_of
from tokenizers import Tokenizer
from transformers.utils import sentencepiece_model_pb2_new as schema

from vlm_edge.checkpoints.spiece import main, siglip_tokenizer
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES

FAMILY = FAMILIES["siglip"]
WORDS = ("\u2581a", "\u2581photo", "\u2581of", "\u2581cat", "\u2581dogs", "in", "\u2581the", "na\u00efve", "\u4e2d")
TOKENS: dict[str, list[int]] = {
    "a photo of a cat.": [3, 4, 5, 3, 6, 1],
    "What's in the picture, 3 DOGS?": [12, 35, 20, 13, 32, 31, 12, 8, 9, 12, 28, 21, 15, 32, 33, 30, 17, 12, 42, 7, 1],
    "na\xefve \u2014 \u4e2d": [12, 10, 12, 2, 12, 11, 1],
    "": [1],
    "  two  spaces ": [12, 12, 32, 35, 27, 12, 31, 28, 13, 15, 17, 31, 1],
    ".": [1],
    "\u2581cat": [12, 6, 1],
    "The\tcat\nin": [9, 6, 12, 8, 1],
    "{dogs}-CATS": [7, 15, 13, 32, 31, 1],
    "\xa0a\xa0": [12, 3, 1],
}
"""By transformers 5.23's SiglipTokenizer with sentencepiece 0.2.3."""


def write_model(path: Path, **trainer: Any) -> None:
    """A unigram model of a few words, every letter and digit."""
    proto = schema.ModelProto()
    proto.trainer_spec.model_type = trainer.get("model_type", 1)
    proto.trainer_spec.unk_id = 2
    proto.normalizer_spec.add_dummy_prefix = False
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
    pieces += [(word, -2.0 - 0.1 * index, 1) for index, word in enumerate(WORDS)]
    letters = "\u2581abcdefghijklmnopqrstuvwxyz0123456789\u00ef"
    pieces += [(letter, -6.0 - 0.01 * index, 1) for index, letter in enumerate(letters)]
    for piece, score, kind in pieces:
        proto.pieces.add(piece=piece, score=score, type=kind)
    path.write_bytes(proto.SerializeToString())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny SigLIP as it is published: SiglipTokenizer, a SentencePiece file, and no tokenizer.json."""
    folder = siglip_of(tmp_path / "siglip")
    (folder / "tokenizer.json").unlink()
    change_json(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer", pad_token="</s>", eos_token="</s>")
    write_model(folder / "spiece.model")
    return folder


def test_tokens_are_siglip_tokenizers(tmp_path: Path) -> None:
    write_model(tmp_path / "spiece.model")
    main(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert {text: tokenizer.encode(text).ids for text in TOKENS} == TOKENS


def test_random_texts_too(tmp_path: Path) -> None:
    """Where sentencepiece is installed; texts that spell a special token differ."""
    pytest.importorskip("sentencepiece")
    import numpy as np

    write_model(tmp_path / "spiece.model")
    reference = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    tokenizer = siglip_tokenizer(tmp_path / "spiece.model")
    generator = np.random.default_rng(0)
    for length in generator.integers(0, 25, 300):
        text = "".join(generator.choice(list("abcdotghi  A.,!?'-\u2014\u00c9\u4e2d\u00ef\t\u258112"), length))
        assert tokenizer.encode(text).ids == reference(text)["input_ids"], text


@pytest.mark.parametrize("installed", [True, False])
def test_a_published_checkpoint_is_read(checkpoint: Path, installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VlmEdgeError, match=r"spiece\.model but no tokenizer\.json") as told:
        FAMILY.text_processing(checkpoint)
    assert told.value.hint == "write it from spiece.model: python -m vlm_edge.checkpoints.spiece FOLDER"
    main(checkpoint)
    if installed:
        pytest.importorskip("sentencepiece")
    else:

        def absent(*_: Any, **__: Any) -> Any:
            raise ImportError("SiglipTokenizer requires the SentencePiece library")

        monkeypatch.setattr("vlm_edge.checkpoints.pretrained.AutoTokenizer.from_pretrained", absent)
    spec = FAMILY.text_processing(checkpoint)
    assert spec is not None
    assert (spec.pad_token_id, spec.pad_to, spec.mask_padding) == (1, 16, False)


def test_a_tokenizer_file_of_another_model_is_told(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    siglip_of(other)
    shutil.copyfile(other / "tokenizer.json", checkpoint / "tokenizer.json")
    change_json(checkpoint / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]")
    with pytest.raises(VlmEdgeError, match=r"gives 'a photo of a cat\.' other tokens .* than spiece\.model does"):
        FAMILY.text_processing(checkpoint)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(b"\xff\xffno protobuf")
    with pytest.raises(VlmEdgeError, match="no SentencePiece file"):
        siglip_tokenizer(path)
    write_model(path, model_type=2)
    with pytest.raises(VlmEdgeError, match="no unigram model"):
        siglip_tokenizer(path)
