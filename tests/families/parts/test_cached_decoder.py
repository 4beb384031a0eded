"""Decoders with cross-attention and a cache of fixed length: places that hold no token change nothing, and OpenVINO's
engine of fixed shapes gives what the graph gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_checkpoints import Exported
from watched_openvino import input_shapes, is_fixed, watch_openvino

from vlm_edge.backends import engine_available, load_engine
from vlm_edge.backends.explaining import ExplainJob
from vlm_edge.backends.openvino.explain import explain_component
from vlm_edge.backends.openvino.fixed_shapes import fillable, fixed_sizes
from vlm_edge.backends.reference import ReferenceRuns
from vlm_edge.stages.compile_references import reference_runs

SUBJECTS = ["BLIP, questions", "BLIP, captions", "TrOCR", "ViT-GPT2", "Florence-2", "BLIP-2, T5"]
SELF_MASK = "decoder_attention_mask"


@pytest.fixture
def recorded(subject: Exported, tmp_path: Path) -> ReferenceRuns:
    """The decoder's runs while the pipeline answered: at batch 1 first, then at others."""
    return reference_runs(subject.folder, subject.manifest, 1, 0, tmp_path)["decoder"]


def with_room(feed: dict[str, Any], places: int) -> dict[str, Any]:
    """The feed with as many places more in front of the cache's tokens, which hold anything but tokens."""
    generator, wider = np.random.default_rng(1), dict(feed)
    for name, array in feed.items():
        if name.startswith("past_key_values."):
            batch, heads, _, size = array.shape
            room = generator.normal(size=(batch, heads, places, size)).astype(np.float32)
            wider[name] = np.concatenate([room, array], axis=2)
    wider[SELF_MASK] = np.pad(feed[SELF_MASK], ((0, 0), (places, 0)))
    return wider


@pytest.mark.parametrize("places", [1, 7])
def test_places_that_hold_no_token_change_nothing(recorded: ReferenceRuns, subject: Exported, places: int) -> None:
    row = subject.manifest.components["decoder"]
    engine = load_engine("onnxruntime", subject.folder / row.file, row, 1, {"graph_optimization": "disabled"})
    pasts = set()
    for feed, wanted in recorded:
        found = engine.infer(with_room(dict(feed), places))
        for name, output in wanted.items():
            got = found[name] if name == "logits" else found[name][:, :, places:]
            np.testing.assert_allclose(got, output, atol=2e-5, rtol=1e-4, err_msg=name)
        pasts.add(feed["past_key_values.0.key"].shape[2])
    assert {0, 1, 2} <= pasts


@pytest.mark.skipif(engine_available("openvino") is not None, reason="OpenVINO is not installed")
def test_openvino_runs_its_fixed_model_and_answers_alike(
    recorded: ReferenceRuns, subject: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = subject.manifest.components["decoder"]
    memory = {"question_tokens", "memory_tokens"} & fillable(row)
    assert fillable(row) == {"past", "past + new"} | memory
    sizes = fixed_sizes(row)
    assert sizes is not None
    assert sizes["past"] == 16
    models = watch_openvino(monkeypatch)
    engine = load_engine("openvino", subject.folder / row.file, row)
    single = [recorded[position] for position in range(recorded.single_runs)]
    assert len(recorded) > len(single) >= 2
    for runs, other_batches in ((single, False), (recorded, True), (single[::-1], True)):
        for feed, wanted in runs:
            for name, output in engine.infer(feed).items():
                np.testing.assert_allclose(output, wanted[name], atol=2e-4, rtol=1e-3, err_msg=name)
        assert models.kinds == ({"fixed", "any"} if other_batches else {"fixed"})
    masks = [input_shapes(model)[SELF_MASK] for model in models if is_fixed(model)]
    assert all(rows == 1 and tokens in (17, 65) for rows, tokens in masks)


@pytest.mark.skipif(engine_available("openvino") is not None, reason="OpenVINO is not installed")
def test_explain_looks_at_what_the_engine_runs(recorded: ReferenceRuns, subject: Exported) -> None:
    row = subject.manifest.components["decoder"]
    feed, _ = recorded[recorded.single_runs - 1]
    report = explain_component(ExplainJob("decoder", subject.folder / row.file, 1, feed=feed, component=row, runs=1))
    assert feed["past_key_values.0.key"].shape[2] < 16
    assert report["inputs"]["past_key_values.0.key"][2] == 16
