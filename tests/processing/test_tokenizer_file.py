"""tokenizer.json files that would kill, hang or surprise the process are refused; those of public models are not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from byte_tokenizer import write_byte_tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import TextProcessing
from vlm_edge.processing.text import MOST_CHARACTERS, Tokenizer
from vlm_edge.processing.tokenizer_file import require_tame_regex

SPEC = TextProcessing(pad_token_id=0, max_length=64)
PLAIN: dict[str, Any] = {
    **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None},
    **{"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None},
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
}
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
A: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def encoder(folder: Path, **changes: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(PLAIN | changes))
    return Tokenizer(folder, SPEC)


def replacing(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def charsmap(piece: bytes) -> str:
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + piece + b"\0").decode()


REFUSED: dict[str, dict[str, Any]] = {
    "doubled 40 times": {"normalizer": {"type": "Sequence", "normalizers": [replacing("a", "aa")] * 40}},
    "doubled 9 times": {"normalizer": {"type": "Sequence", "normalizers": [replacing("a", "aa")] * 9}},
    "much for one": {"normalizer": replacing("a", "a" * 10**6)},
    "the empty pattern": {"normalizer": replacing("", "aaaa")},
    "a pattern of nothing": {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 300}},
    "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
    "a map of long pieces": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(b"a" * 9999)}},
    "no map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
    "no base 64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}},
    "a decoder that multiplies": {"decoder": {"type": "Sequence", "decoders": [replacing("a", "aa")] * 9}},
    "a decoder that strips nothing": {"decoder": {"type": "Strip", "content": "a", "start": 5, "stop": 9}},
    "no such token": {"post_processor": TEMPLATE | {"single": [{"SpecialToken": {"id": "X", "type_id": 0}}, A]}},
    "the text twice": {"post_processor": TEMPLATE | {"single": [A, A]}},
    "no text": {"post_processor": TEMPLATE | {"single": []}},
    "many tokens": {
        "post_processor": TEMPLATE
        | {"single": [A, *[{"SpecialToken": {"id": "a", "type_id": 0}}] * 99]}
        | {"special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}}}
    },
    "an unknown type": {"normalizer": {"type": "Python"}},
    "a type that is none": {"pre_tokenizer": {"type": ["Split"]}},
    "a pre-tokenizer that never ends": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "deep": {"normalizer": json.loads('{"type": "Sequence", "normalizers": [' * 30 + "]}" * 30)},
    "a list": {"normalizer": []},
    "half a split": {"pre_tokenizer": {"type": "Split"}},
    "a step of no type": {"normalizer": {"type": "Sequence", "normalizers": [3]}},
    "no steps": {"normalizer": {"type": "Sequence"}},
    "random tokens": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}},
    "a merge without its prefix": {
        "model": {"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": ["a a"], "continuing_subword_prefix": "éééé"}
    },
    "a merge of no token": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a q"]}},
    "an unknown token beyond the vocabulary": {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}},
    "a vocabulary that is none": {"model": {"type": "WordLevel", "vocab": None, "unk_token": "a"}},
    "a model that is none": {"model": {"type": "Oracle"}},
    "words without an end": {
        "model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 10**12}
    },
    "a bad expression": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
    },
    "an added token of no text": {"added_tokens": [{"id": 3}]},
    "added tokens that are none": {"added_tokens": 3},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_kill_or_hang_is_refused_when_it_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(VlmEdgeError) as caught:
        encoder(tmp_path, **REFUSED[name])
    assert caught.value.message.startswith(f"{tmp_path / 'tokenizer.json'}: ")
    assert len(caught.value.message) < 500
    assert caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {
            "padding": {
                "strategy": {"Fixed": 10**9},
                "direction": "Right",
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "a",
            }
        },
        {"truncation": {"max_length": 1, "stride": 0, "direction": "Right", "strategy": "LongestFirst"}},
    ],
)
def test_the_file_s_own_padding_and_cutting_are_not_followed(tmp_path: Path, changes: dict[str, Any]) -> None:
    (changes.get("padding") or {}).setdefault("pad_to_multiple_of", None)
    assert encoder(tmp_path, **changes).encode(["a b a"])[0].tolist() == [[0, 1, 0]]


def test_a_fault_while_encoding_is_named(tmp_path: Path) -> None:
    """Unigram without a token for what it doesn't know raises a bare Exception; both kinds end alike."""
    found = encoder(tmp_path, model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None})
    with pytest.raises(VlmEdgeError, match="tokenizers can't work with it"):
        found.encode(["zebra"])


@pytest.mark.parametrize("content", ["[" * 100_000, '{"model": {}, "normalizer": ' + "[" * 100_000, "{}", "\xff"])
def test_malformed_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(VlmEdgeError, match=r"tokenizer\.json: "):
        Tokenizer(tmp_path, SPEC)


def test_a_model_that_reads_less_than_its_own_special_tokens(tmp_path: Path) -> None:
    tokens = {"a": {"id": "a", "ids": [0], "tokens": ["a"]}}
    single = [{"SpecialToken": {"id": "a", "type_id": 0}}, A, {"SpecialToken": {"id": "a", "type_id": 0}}]
    content = PLAIN | {"post_processor": TEMPLATE | {"single": single, "special_tokens": tokens}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(VlmEdgeError):
        Tokenizer(tmp_path, SPEC.model_copy(update={"max_length": 1})).encode(["a b"])


class TestExpressions:
    @pytest.mark.parametrize(
        "pattern",
        [GPT2, LLAMA3, O200K, r" {2,}", r"\s+", r"[ ▁]+$", r"\p{N}", "[!-/]", r"(?:\r?\n)+", r"\p{N}{1,3}+", "a|b|c"],
    )
    def test_those_of_public_models(self, pattern: str) -> None:
        require_tame_regex(pattern)

    @pytest.mark.parametrize(
        "pattern",
        [
            *("(a+)+$", "(a*)*c", "((a{1,1000}){1,1000}){1,1000}", r"(a)\1+", "a*a*a*a*a*a*b", "(x+x+)+y"),
            *("(?:(?:a|b+)c?)*", "(" * 50 + "a" + ")" * 50, "a" * 5000, r"(?<n>a)\k<n>"),
        ],
    )
    def test_those_that_never_end(self, pattern: str) -> None:
        with pytest.raises(ValueError, match="regular expression"):
            require_tame_regex(pattern)


class TestPublicForms:
    """The forms of public models' files, built with the library, are read and mean the same."""

    def check(self, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
        tokenizer.save(str(folder / "tokenizer.json"))
        for text in ("what colour is it?", "it  is\nred, 12345!"):
            found = Tokenizer(folder, SPEC).encode([text])[0][0].tolist()
            assert found == tokenizer.encode(text).ids

    def test_llama(self, tmp_path: Path) -> None:
        write_byte_tokenizer(tmp_path)
        vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
        tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False)])
        self.check(tokenizer, tmp_path)

    def test_sentencepiece(self, tmp_path: Path) -> None:
        pieces = [("<unk>", 0.0), ("▁", -1.0), *((chr(code), -2.0) for code in range(33, 127))]
        tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Prepend("▁")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.add_special_tokens([AddedToken("</s>", normalized=False)])
        end = tokenizer.token_to_id("</s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
        self.check(tokenizer, tmp_path)

    def test_roberta_and_clip(self, tmp_path: Path) -> None:
        write_byte_tokenizer(tmp_path, bos=False)
        tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(GPT2), "removed", invert=True), pre_tokenizers.ByteLevel(False)]
        )
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 257), ("<s>", 256))
        self.check(tokenizer, tmp_path)


class TestLongTexts:
    @pytest.mark.parametrize("texts", [["a b"], ["a", "a b"], ["a", "b a"]])
    def test_a_text_that_fits(self, tmp_path: Path, texts: list[str]) -> None:
        encoder(tmp_path)
        ids, _ = Tokenizer(tmp_path, SPEC.model_copy(update={"max_length": 2})).encode(texts)
        assert ids.shape == (len(texts), 2)

    @pytest.mark.parametrize("texts", [["a b a"], ["a", "a b a"]])
    @pytest.mark.parametrize("spec", [{"max_length": 2}, {"pad_to": 2}])
    def test_a_text_that_does_not_is_refused_with_its_tokens_and_the_limit(
        self, tmp_path: Path, texts: list[str], spec: dict[str, int]
    ) -> None:
        encoder(tmp_path)
        short = Tokenizer(tmp_path, SPEC.model_copy(update=spec))
        with pytest.raises(VlmEdgeError, match="'a b a': 3 tokens; this model reads at most 2"):
            short.encode(texts)
        assert short.encode(texts, cut=True)[0].shape == (len(texts), 2)

    def test_a_text_of_more_characters_than_any_model_reads(self, tmp_path: Path) -> None:
        with pytest.raises(VlmEdgeError, match=f"{MOST_CHARACTERS + 1} characters"):
            encoder(tmp_path).encode(["a" * (MOST_CHARACTERS + 1)])
