"""Settings of generation_config.json: followed token for token as ``generate`` does, or named as not followed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_vlm
import transformers
from family_checkpoints import SEP, Exported, change_json, exported, photos
from tiny_encoder_decoder import CASES
from tiny_llava import checkpoint_of

from vlm_edge.checkpoints.generation_settings import SETTINGS_NAME
from vlm_edge.core.stage import SilentProgress
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime import Request
from vlm_edge.runtime.greedy import GreedyDecoder
from vlm_edge.stages.export_generate import reference_answer

SUBJECTS = ["LLaVA-1.5", "TrOCR"]
SHORT, LEAST = {"LLaVA-1.5": 60, "TrOCR": 9}, {"LLaVA-1.5": 50, "TrOCR": 9}
"""Lengths in all, prompt included: one cuts some answers short, and one ends none before it."""
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition_penalty": {"repetition_penalty": 1.05},
    "strong repetition_penalty": {"repetition_penalty": 2.5},
    "max_length": {"max_new_tokens": None, "max_length": SHORT},
    "max_new_tokens before max_length": {"max_new_tokens": 7, "max_length": 128},
    "neither length": {"max_new_tokens": None},
    "suppress_tokens": {"suppress_tokens": [*range(40, 110)]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [*range(30, 127)]},
    "min_new_tokens": {"min_new_tokens": 25},
    "min_length": {"min_length": LEAST},
    "bad_words_ids": {"bad_words_ids": [[60], [SEP], [58, 93], [9, 8, 7], [57, 57, 57]]},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [3, 1.9]},
    "forced ends": {"forced_bos_token_id": 77, "forced_eos_token_id": 9, "max_new_tokens": 6},
    "all of them": {
        "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [50, 51], "min_new_tokens": 9,
        "begin_suppress_tokens": [*range(90, 127)], "exponential_decay_length_penalty": [12, 1.5],
        "bad_words_ids": [[70, 71]],
    },
}  # fmt: skip
IDLE = ("plain", "repetition_penalty", "min_new_tokens", "min_length")
"""Rules that need not change the answers of both models: one of the two never ends early."""


def changed(subject: Exported, folder: Path, **settings: Any) -> Path:
    """A copy of the subject's checkpoint with other generation settings."""
    shutil.copytree(subject.checkpoint, folder, dirs_exist_ok=True)
    values = json.loads((folder / SETTINGS_NAME).read_text()) | settings
    values = {name: value for name, value in values.items() if value is not None}
    (folder / SETTINGS_NAME).write_text(json.dumps(values))
    return folder


def ours(subject: Exported, folder: Path, requests: list[Request]) -> list[list[int]]:
    """The subject's graphs under the settings of ``folder``: one batch of requests, or of photos."""
    generation = subject.family.generation(folder)
    before = subject.pipeline._decoder
    subject.pipeline._decoder = GreedyDecoder(before._decoder, generation)
    try:
        if subject.name == "TrOCR":
            return list(subject.pipeline.caption_ids(photos()))
        return list(subject.pipeline.generate_ids(requests))
    finally:
        subject.pipeline._decoder = before


def generates(subject: Exported, folder: Path, requests: list[Request]) -> list[list[int]]:
    """transformers' own answers, each alone, with the settings that transformers reads from ``folder``."""
    model = subject.model
    before = model.generation_config
    model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    ends = subject.manifest.generation.eos_token_ids
    try:
        if subject.name == "TrOCR":
            pixels = CASES["trocr"].processor.from_pretrained(folder)(photos(), return_tensors="pt")["pixel_values"]
            rows = [model.generate(pixel_values=image[None])[0, 1:].tolist() for image in pixels]
        else:
            text = Tokenizer(subject.folder, subject.manifest.text)
            results = [
                reference_answer(model, subject.family, subject.manifest, text, request, output_scores=True)
                for request in requests
            ]
            rows = [result.sequences[0, -len(result.scores) :].tolist() for result in results]
    finally:
        model.generation_config = before
    return [row[: min((place for place, token in enumerate(row) if token in ends), default=len(row))] for row in rows]


def asked() -> list[Request]:
    """Prompts of different lengths, so that a batch is padded."""
    images = tiny_vlm.photos(0, [(40, 33), (64, 100)])
    return [Request("what is it?", images[:1]), Request("hello"), Request("how many are there ?", images[1:])]


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("rule", list(RULES))
def test_followed_as_generate_does(subject: Exported, rule: str, tmp_path: Path) -> None:
    rules = {name: value[subject.name] if value in (SHORT, LEAST) else value for name, value in RULES[rule].items()}
    folder = changed(subject, tmp_path / "checkpoint", **rules)
    answers = ours(subject, folder, asked())
    assert answers == generates(subject, folder, asked())
    assert answers != ours(subject, subject.checkpoint, asked()) or rule in IDLE
    assert subject.family.generation(folder).not_followed == {}


def test_a_prompt_that_fills_max_length_is_refused(subject: Exported, tmp_path: Path) -> None:
    folder = changed(subject, tmp_path / "checkpoint", max_new_tokens=None, max_length=20)
    if subject.name == "LLaVA-1.5":
        with pytest.raises(VlmEdgeError, match=r"leaves no room for an answer: .*max_length is 20"):
            ours(subject, folder, asked())
        (answer,) = subject.pipeline.generate_ids(asked()[1:2], max_new_tokens=3)  # as generate: the newer name wins
        assert len(answer) == 3


NAMED: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
    "stop_strings": {"stop_strings": ["###"]},
    "guidance": {"guidance_scale": 1.5},
    "someone's own": {"chat_format": "chatml"},
}
UNNAMED: dict[str, Any] = {
    "do_sample": False, "temperature": 0.7, "top_k": 1, "length_penalty": 2.0, "use_cache": False, "num_beams": 1,
    "_from_model_config": True, "transformers_version": "4.40.0", "repetition_penalty": 1.0, "pad_token_id": -1,
}  # fmt: skip


@pytest.mark.parametrize("case", list(NAMED))
def test_what_is_not_followed_is_named(subject: Exported, case: str, tmp_path: Path) -> None:
    folder = changed(subject, tmp_path / "checkpoint", **NAMED[case])
    expected = {name: json.dumps(value) for name, value in NAMED[case].items()}
    assert subject.family.generation(folder).not_followed == expected


def test_what_does_nothing_is_not_named(subject: Exported, tmp_path: Path) -> None:
    folder = changed(subject, tmp_path / "checkpoint", **UNNAMED)
    assert subject.family.generation(folder).not_followed == {}
    load_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_length", "long"), ("max_new_tokens", -1), ("repetition_penalty", 0.0), ("repetition_penalty", "1.1"),
        ("suppress_tokens", 5), ("bad_words_ids", [[]]), ("bad_words_ids", [5]), ("eos_token_id", [1, None]),
        ("eos_token_id", -3), ("exponential_decay_length_penalty", [1]), ("min_length", True), ("max_length", 10**20),
        ("repetition_penalty", float("nan")), ("begin_suppress_tokens", [2.5]), ("pad_token_id", {}),
    ],
)  # fmt: skip
def test_a_malformed_value_is_told_with_file_and_key(subject: Exported, key: str, value: Any, tmp_path: Path) -> None:
    folder = changed(subject, tmp_path / "checkpoint", **{key: value})
    for read in (subject.family.generation, load_checkpoint):
        with pytest.raises(VlmEdgeError) as caught:
            read(folder)
        assert caught.value.message.startswith(f"{folder / SETTINGS_NAME}: {key}")
        assert caught.value.hint


class Remarks(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def remark(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("name", ["blip-vqa", "blip-captioning"])
def test_blip_sees_nothing_of_the_file_but_lengths(name: str, tiny_blip: Path, tmp_path: Path) -> None:
    """Its generate is that of a model inside, so penalties in the file change nothing there, and are named."""
    folder = Path(shutil.copytree(tiny_blip, tmp_path / "checkpoint"))
    (folder / SETTINGS_NAME).write_text(json.dumps({"max_length": 9, "repetition_penalty": 1.5, "num_beams": 3}))
    generation = FAMILIES[name].generation(folder)
    assert generation is not None
    assert (generation.max_new_tokens, generation.repetition_penalty) == (8, 1.0)
    assert generation.not_followed == {"num_beams": "3", "repetition_penalty": "1.5"}


def test_export_names_it_in_the_record_and_at_the_terminal(tiny_blip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_blip, tmp_path / "checkpoint"))
    change_json(folder / SETTINGS_NAME, num_beams=4)
    progress = Remarks()
    result = exported(folder, tmp_path / "export", progress=progress)
    assert result.facts["generation_not_followed"] == {"num_beams": "4"}
    assert result.manifest.generation.not_followed == {"num_beams": "4"}
    (line,) = progress.lines
    assert line.startswith("warning: generation_config.json asks for what decoding here does not do: num_beams: 4;")


def test_export_compares_with_the_settings_followed(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path / "checkpoint")
    change_json(folder / SETTINGS_NAME, repetition_penalty=1.4, no_repeat_ngram_size=3, min_length=90)
    result = exported(folder, tmp_path / "export")
    assert result.facts["composed"]["questions_equal"] == 3
    assert "generation_not_followed" not in result.facts
