"""Every family learns through one door, and learns from what the device computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checkpoints import Exported, photos
from learning import logits_of, sample
from photo_folders import write_photos
from support_page import hold
from tiny_families import TINY

from vlm_edge.core.stage import StageWork, TaskSpec
from vlm_edge.data.dataset import Dataset
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.tasks import tasks_of_kind
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.stages.head_pruning import recover
from vlm_edge.stages.training_config import Recovery
from vlm_edge.stages.training_data import load_training_set
from vlm_edge.training.learner import AnswerLearner, Learner
from vlm_edge.training.losses import IGNORED
from vlm_edge.training.prompting import PromptLearner
from vlm_edge.training.table import LEARNERS, learner_of

SUBJECTS = list(TINY)
QUESTIONS = ("what is it", "is it red", "how many")
TOKENS = 6
UNTRAINED = "no: it answers nothing"


def learned(learner: Learner, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """(logits, batch) of the device's own answers to QUESTIONS, each about its photo."""
    pictures = [learner.picture(photo) for photo in photos()]
    samples = [sample(text, "red", image=place) for place, text in enumerate(QUESTIONS)]
    if isinstance(learner, AnswerLearner):
        told = iter(answers)
        monkeypatch.setattr(learner, "_ids", lambda _: next(told))
    elif isinstance(learner, PromptLearner):
        tokens, known = learner.tokens, dict(zip(QUESTIONS, answers, strict=True))
        end = learner.generation.eos_token_id
        monkeypatch.setattr(
            learner, "tokens", lambda asked, images: (tokens(asked, images)[0], [*known[asked.text], end])
        )
    dataset = Dataset("photos", "vqa", "train", tuple(samples), "")
    batch = learner.batch(samples, np.arange(3), pictures, dataset)
    with torch.no_grad():
        batch = replace(batch, pixels=learner.pixels(pictures))
        return logits_of(learner, batch), batch


def test_what_is_learned_is_what_the_device_computes(subject: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told the device's answer, the model finds each of its tokens likeliest, padded in a batch; or gives its score."""
    kind, pipeline = subject.family.pipeline, subject.pipeline
    if kind not in LEARNERS:
        pytest.skip("it is not trained")
    learner = learner_of(load_checkpoint(subject.checkpoint))
    if kind in ("vqa", "generate", "captioning"):
        if kind == "captioning":
            answers = pipeline.caption_ids(photos(), max_new_tokens=TOKENS)
        else:
            answers = pipeline.answer_ids(pipeline.encode_images(photos()), QUESTIONS, max_new_tokens=TOKENS)
        rules = pipeline.manifest.generation
        forced = int(rules.first_token_id is not None)
        most = rules.no_repeat_ngram or TOKENS  # behind it the likeliest token may be forbidden
        answers = [answer[forced : max(most - number, 2)] for number, answer in enumerate(answers)]  # unequal lengths
        logits, batch = learned(learner, answers, monkeypatch)
        for said, labels, answer in zip(logits.argmax(dim=-1), batch.labels, answers, strict=True):
            first = int((labels != IGNORED).nonzero()[0])
            assert said[first : first + len(answer)].tolist() == answer
            assert labels[first : first + len(answer)].tolist() == answer
        return
    logits, batch = learned(learner, [], monkeypatch)
    features = pipeline.embed_images(photos()) if kind == "dual_encoder" else pipeline.encode_images(photos())
    if kind == "dual_encoder":
        scores = features @ pipeline.embed_texts(QUESTIONS).T
        expected = scores * (pipeline.manifest.logit_scale or 1) + (pipeline.manifest.logit_bias or 0)
    elif kind == "matching":
        assert batch.labels.tolist() == [1, 1, 1, 0, 0, 0]
        texts = [*QUESTIONS, *QUESTIONS[1:], QUESTIONS[0]]
        logits, expected = logits.softmax(dim=-1), pipeline.probabilities(np.concatenate([features] * 2), texts)
    else:
        logits, expected = logits[..., 1].sigmoid(), pipeline.scores(features, QUESTIONS)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))


def test_a_recovery_lowers_the_loss(subject: Exported, tmp_path: Path) -> None:
    kinds = tasks_of_kind(subject.family.pipeline)
    work = StageWork(out=tmp_path, scratch=tmp_path)
    if subject.family.pipeline not in LEARNERS:
        with pytest.raises(VlmEdgeError, match="no loss to train on"):
            learner_of(load_checkpoint(subject.checkpoint))
        hold(subject.name, {"recover": UNTRAINED})
        return
    learner = learner_of(load_checkpoint(subject.checkpoint))
    task = TaskSpec(kind=kinds[0], data=write_photos(tmp_path, kinds[0], images=8))
    data = load_training_set(task, learner, work, limit=4)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    settings = {"epochs": 6, "images_per_batch": 4, "learning_rate": 1e-3, "precision": "float32"}
    config = Recovery(teacher_weight=0.0, **settings)
    teacher = learner_of(load_checkpoint(subject.checkpoint))
    losses = [step["labels"] for step in recover(learner, teacher, data, config, work)["losses"]]
    assert min(losses[3:]) < losses[0]
    tower = subject.family.vision_tower_path
    changed = {name for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not tower or not any(name.startswith(f"{tower}.") for name in changed)
    hold(subject.name, {"recover": "yes"})
