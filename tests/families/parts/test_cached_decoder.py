"""Decoders with cross-attention and a cache of fixed length: places that hold no token change nothing, and OpenVINO's
engine of fixed shapes gives what the graph gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_checkpoints import Exported

from vlm_edge.engines import engine_available, load_engine
from vlm_edge.engines.openvino_fixed import fillable, fixed_sizes
from vlm_edge.evaluation.explain_openvino import explain_ir
from vlm_edge.stages.compile_check import ReferenceEngine, reference_runs

SUBJECTS = ["BLIP, questions", "BLIP, captions", "TrOCR", "ViT-GPT2", "Florence-2", "BLIP-2, T5"]
SELF_MASK = "decoder_attention_mask"


@pytest.fixture
def recorded(subject: Exported, tmp_path: Path) -> ReferenceEngine:
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
def test_places_that_hold_no_token_change_nothing(recorded: ReferenceEngine, subject: Exported, places: int) -> None:
    row = subject.manifest.components["decoder"]
    engine = load_engine("onnxruntime", subject.folder / row.file, row, 1, {"graph_optimization": "disabled"})
    pasts = set()
    for feed, wanted in recorded.runs:
        found = engine.infer(with_room(dict(feed), places))
        for name, output in wanted.items():
            got = found[name] if name == "logits" else found[name][:, :, places:]
            np.testing.assert_allclose(got, output, atol=2e-5, rtol=1e-4, err_msg=name)
        pasts.add(feed["past_key_values.0.key"].shape[2])
    assert {0, 1, 2} <= pasts


@pytest.mark.skipif(engine_available("openvino") is not None, reason="OpenVINO is not installed")
def test_openvino_runs_its_fixed_model_and_answers_alike(recorded: ReferenceEngine, subject: Exported) -> None:
    row = subject.manifest.components["decoder"]
    memory = {"question_tokens", "memory_tokens"} & fillable(row)
    assert fillable(row) == {"past", "past + new"} | memory
    sizes = fixed_sizes(row)
    assert sizes is not None
    assert sizes["past"] == 16
    engine: Any = load_engine("openvino", subject.folder / row.file, row)
    single = [recorded.runs[position] for position in range(recorded.single_runs)]
    assert len(recorded.runs) > len(single) >= 2
    for runs, other_batches in ((single, False), (recorded.runs, True), (single[::-1], True)):
        for feed, wanted in runs:
            for name, output in engine.infer(feed).items():
                np.testing.assert_allclose(output, wanted[name], atol=2e-4, rtol=1e-3, err_msg=name)
        assert engine._fixed is not None
        assert (engine._any is not None) == other_batches
    assert set(engine._sizes.values()) <= {1, 16, 17, 64}


@pytest.mark.skipif(engine_available("openvino") is not None, reason="OpenVINO is not installed")
def test_explain_looks_at_what_the_engine_runs(recorded: ReferenceEngine, subject: Exported) -> None:
    row = subject.manifest.components["decoder"]
    feed, _ = recorded.runs[recorded.single_runs - 1]
    report = explain_ir(subject.folder / row.file, dict(feed), 1, {}, runs=1, dims={}, component=row)
    assert feed["past_key_values.0.key"].shape[2] < 16
    assert report["inputs"]["past_key_values.0.key"][2] == 16
