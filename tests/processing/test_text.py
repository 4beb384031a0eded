"""Tokenizer against transformers' own tokenizer on the same tokenizer.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import TextProcessing
from vlm_edge.processing.text import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "color", "is", "the", "shape", "?", "tri", "##angle", "red", "'s"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer.json built as BERT's are."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.enable_padding(length=30)  # as a tokenizer may be saved; the manifest decides, not the file
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def spec(**changes: object) -> TextProcessing:
    return TextProcessing.model_validate({"pad_token_id": 0, "max_length": 8, **changes})


class TestEncode:
    @pytest.mark.parametrize("pad_to", [None, 8, 12])
    @settings(max_examples=40, deadline=None)
    @given(texts=st.lists(st.lists(st.sampled_from([*WORDS[4:], "red's", "Ünknown"])).map(" ".join), max_size=4))
    def test_equals_transformers(self, folder: Path, pad_to: int | None, texts: list[str]) -> None:
        transformers = pytest.importorskip("transformers")
        input_ids, attention_mask = Tokenizer(folder, spec(pad_to=pad_to)).encode(texts, cut=True)
        assert input_ids.dtype == attention_mask.dtype == np.int64
        if not texts:
            assert input_ids.shape == attention_mask.shape == (0, pad_to or 0)
            return
        reference = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", model_max_length=8
        )
        expected = reference(
            texts, padding="max_length" if pad_to else "longest", truncation=True, max_length=8, return_tensors="np"
        )
        padding = input_ids.shape[1] - expected["input_ids"].shape[1]
        assert padding == (0 if pad_to is None else pad_to - 8)
        for got, name in ((input_ids, "input_ids"), (attention_mask, "attention_mask")):
            np.testing.assert_array_equal(got, np.pad(expected[name], ((0, 0), (0, padding))))

    def test_pad_to_below_max_length_cuts_there_and_keeps_the_last_special_token(self, folder: Path) -> None:
        input_ids, attention_mask = Tokenizer(folder, spec(pad_to=4)).encode(["what color is the shape ?"], cut=True)
        np.testing.assert_array_equal(input_ids, [[2, 4, 5, 3]])
        np.testing.assert_array_equal(attention_mask, [[1, 1, 1, 1]])

    def test_texts_that_are_cut_are_counted(self, folder: Path) -> None:
        texts = ["what color", "what color is", "is", "what color is the shape ?"]
        assert Tokenizer(folder, spec(max_length=4)).count_too_long(texts) == 2
        assert Tokenizer(folder, spec(max_length=4)).count_too_long(texts[1:2]) == 1

    @pytest.mark.parametrize("texts", [["\ud800"], ["red", "caf\udce9"], [b"red"], [3]])
    def test_what_is_no_text_is_named(self, folder: Path, texts: list[str]) -> None:
        with pytest.raises(VlmEdgeError, match="no valid Unicode") as caught:
            Tokenizer(folder, spec()).encode(texts)
        str(caught.value).encode("utf-8")


class TestDecode:
    def test_joins_word_pieces_and_leaves_special_tokens_out(self, folder: Path) -> None:
        assert Tokenizer(folder, spec()).decode([2, 12, 10, 11, 3, 0, 0]) == "red triangle"

    def test_nothing_but_special_tokens_is_an_empty_answer(self, folder: Path) -> None:
        assert Tokenizer(folder, spec()).decode([3]) == ""


class TestTokenizerFile:
    @pytest.mark.parametrize(
        ("content", "words"), [(None, "no such"), (b'{"model": {"ty', "not JSON"), (b"[]", "model"), (b"{}", "model")]
    )
    def test_broken_file_is_named(self, tmp_path: Path, content: bytes | None, words: str) -> None:
        if content is not None:
            (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(VlmEdgeError, match=words) as caught:
            Tokenizer(tmp_path, spec())
        assert str(tmp_path / "tokenizer.json") in caught.value.message
