"""Heads of every family's cross-attention: removed is masked, in torch and in the graphs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from family_checkpoints import Exported, exported, photos
from learning import batch_of, logits_of, sample
from photo_folders import write_photos
from tiny_families import TINY
from torch import Tensor

from vlm_edge.api import run_stage
from vlm_edge.evaluation.tasks import tasks_of_kind
from vlm_edge.families.base import AttentionSite
from vlm_edge.families.loading import LoadedCheckpoint, load_checkpoint, save_checkpoint
from vlm_edge.families.parts.component import SplitEncoder
from vlm_edge.runtime import load_pipeline
from vlm_edge.stages.head_pruning import cross_attention_sites
from vlm_edge.surgery.heads import mask_heads, prune_heads
from vlm_edge.training.learner import Learner
from vlm_edge.training.prompting import PromptLearner
from vlm_edge.training.table import learner_of

WITHOUT = ("LLaVA", "Idefics3", "SmolVLM", "Qwen", "PaliGemma", "CLIP", "SigLIP", "ViT beside", "DINOv2", "MobileViT")
SUBJECTS = [name for name in TINY if not name.startswith(WITHOUT)]
DRAWS = 3
TEXTS = ("what color is it", "is it red")


def random_choice(sites: Sequence[AttentionSite], seed: int) -> list[list[int]]:
    """Heads to keep, another number at every site, and at one all of them but one gone."""
    rng = np.random.default_rng(seed)
    counts = [int(rng.integers(1, site.num_heads + 1)) for site in sites]
    counts[seed % len(sites)] = 1
    return [
        rng.choice(site.num_heads, count, replace=False).tolist() for site, count in zip(sites, counts, strict=True)
    ]


def one_token(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A batch whose language model is asked for one token, as its graph gives no more."""
    if isinstance(learner, PromptLearner):
        tokens = learner.tokens
        monkeypatch.setattr(learner, "tokens", lambda asked, images: (tokens(asked, images)[0], [3]))
    labels = learner.family.labels(learner.model) if learner.family.pipeline == "answer_head" else None
    answer = labels[0] if labels else "red"
    return batch_of(learner, [sample(text, answer, image=place) for place, text in enumerate(TEXTS)], [0, 1])


@torch.no_grad()
def masked_logits(learner: Learner, batch: Any, sites: Sequence[AttentionSite], keep: list[list[int]]) -> Tensor:
    with ExitStack() as stack:
        for site, heads in zip(sites, keep, strict=True):
            stack.enter_context(mask_heads(learner.model, site, heads))
        return logits_of(learner, batch)


def pruned(folder: Path, keep: list[list[int]]) -> tuple[LoadedCheckpoint, list[dict[str, Any]]]:
    """The checkpoint with these heads alone, and its surgery."""
    loaded = load_checkpoint(folder)
    sites = cross_attention_sites(loaded)
    for site, heads in zip(sites, keep, strict=True):
        prune_heads(loaded.model, site, heads)
    return loaded, [
        {"op": "prune_heads", "site": site.path, "keep": heads} for site, heads in zip(sites, keep, strict=True)
    ]


def test_removed_is_masked(subject: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = learner_of(load_checkpoint(subject.checkpoint))
    sites = cross_attention_sites(subject.loaded)
    batch = one_token(dense, monkeypatch)
    with torch.no_grad():
        whole = logits_of(dense, batch)
    for seed in range(DRAWS):
        keep = random_choice(sites, seed)
        expected = masked_logits(dense, batch, sites, keep)
        loaded, _ = pruned(subject.checkpoint, keep)
        with torch.no_grad():
            found = logits_of(learner_of(loaded), batch)
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
        assert not torch.allclose(expected, whole, rtol=0, atol=1e-4)


class Graph(torch.nn.Module):
    """A graph in the place of the module that it was made of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(path)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        names = [each.name for each in self.session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return tuple(map(torch.from_numpy, self.session.run(None, feed)))

    def cache_shapes(self) -> dict[int, tuple[int, int]]:
        keys = [each for each in self.session.get_inputs() if each.name.startswith("past_key_values.")][::2]
        return {int(each.name.split(".")[1]): (each.shape[1], each.shape[3]) for each in keys}


class SplitGraph(Graph, SplitEncoder):
    """A whole vision encoder, whose states are its pixels."""

    def states(self, pixel_values: Tensor) -> Tensor:
        return pixel_values

    def outputs(self, states: Tensor) -> tuple[Tensor, ...]:
        return Graph.forward(self, states)


@pytest.mark.slow
def test_what_is_left_reloads_exports_and_answers_in_int8(
    subject: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs of the saved checkpoint give what the dense model gives with the heads masked."""
    dense = learner_of(load_checkpoint(subject.checkpoint))
    sites = cross_attention_sites(subject.loaded)
    keep = random_choice(sites, 1)
    loaded, surgery = pruned(subject.checkpoint, keep)
    save_checkpoint(tmp_path / "pruned", loaded.model, loaded, surgery)
    graphs = exported(tmp_path / "pruned", tmp_path / "graphs")  # held to transformers' own code there
    batch = one_token(dense, monkeypatch)
    expected = masked_logits(dense, batch, sites, keep)
    learner = learner_of(load_checkpoint(tmp_path / "pruned"))
    for name, part in learner.parts.items():
        split = isinstance(part.module, SplitEncoder)
        part.module = (SplitGraph if split else Graph)(graphs.folder / graphs.manifest.components[name].file)
    found = logits_of(learner, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))

    data = write_photos(tmp_path, tasks_of_kind(subject.family.pipeline)[0], images=12)
    settings = {"components": {"*": "int8"}, "samples": 4}
    run_stage("quantize", settings, graphs.folder, tmp_path / "int8", data=data, target="cpu-ort")
    pipeline: Any = load_pipeline(tmp_path / "int8", threads=1)
    if "answers" in pipeline.capabilities:
        assert isinstance(pipeline.answer_batch(pipeline.encode_images(photos()[:1]), ["is it red"])[0], str)
    elif "captions" in pipeline.capabilities:
        assert isinstance(pipeline.caption(photos()[0]), str)
    else:
        assert 0 <= pipeline.match(photos()[:1], ["a red circle"])[0] <= 1
