"""Polls of a tiny VQA engine: the metrics against counts by hand, answers read as POPE reads them."""

from __future__ import annotations

import pytest
from tiny_bench import write_task
from tiny_graphs import WORDS, random_images, save_image, vqa_answer, write_vqa

from vlm_edge.core.stage import TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import evaluate
from vlm_edge.evaluation.comparison import compare, describe

QUESTIONS = ["what color is it", "is it red", "is it", "what is blue no yes", "green"]


def said_no(weights, image, question):
    return "no" in [WORDS[index] for index in vqa_answer(weights, image, question)]


@pytest.fixture
def polls(tmp_path):
    """Two engines, a task, and what the first says (True is yes) and what is labelled, row by row."""
    part = tmp_path / "data" / "test"
    part.mkdir(parents=True)
    weights = write_vqa(tmp_path / "engine", seed=3)
    write_vqa(tmp_path / "other", seed=1)
    rows, said, true = [], [], []
    for number, image in enumerate(random_images(24)):
        save_image(part / f"{number}.png", image)
        for question in QUESTIONS:
            said.append(not said_no(weights, image, question))
            true.append(said[-1] if len(rows) % 4 else len(rows) % 8 == 0)
            label = "yes" if true[-1] else "no"
            slice_ = ("random", "popular")[len(rows) % 2]
            rows.append({"file_name": f"{number}.png", "question": question, "answer": label, "slice": slice_})
    return tmp_path, write_task(tmp_path, rows, kind="hallucination"), said, true


def counted(said, true):
    """Accuracy, precision, recall, F1 and the share of yes, counted one by one."""
    pairs = list(zip(said, true, strict=True))
    hits, false = pairs.count((True, True)), pairs.count((True, False))
    rejected, missed = pairs.count((False, False)), pairs.count((False, True))
    precision, recall = hits / (hits + false), hits / (hits + missed)
    return {
        "accuracy": (hits + rejected) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": (hits + false) / len(pairs),
    }


def test_the_metrics_are_popes_on_the_whole_and_on_every_slice(polls):
    folder, task, said, true = polls
    outcomes = evaluate(folder / "engine", task, threads=1)
    assert 0 < sum(said) < len(said)  # the tiny engine says both
    assert outcomes.expected == tuple("yes" if each else "no" for each in true)
    found = {each.metric: each for each in describe(outcomes)}
    for suffix, rows in (("", slice(None)), ("[random]", slice(0, None, 2)), ("[popular]", slice(1, None, 2))):
        for metric, value in counted(said[rows], true[rows]).items():
            each = found.pop(f"{metric}{suffix}")
            assert each.value == pytest.approx(value)
            assert each.low <= each.value <= each.high
            assert each.n == len(said[rows])
    assert not found


def test_two_engines_are_compared_in_every_metric_and_in_their_tokens(polls):
    folder, task, _, _ = polls
    before, after = (evaluate(folder / name, task, threads=1) for name in ("engine", "other"))
    found = {each.metric: each for each in compare(before, after)}
    for metric in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert {metric, f"{metric}_drop_pt", f"{metric}_ratio[random]"} <= found.keys()
    same = [ours == theirs for ours, theirs in zip(before.tokens, after.tokens, strict=True)]
    assert found["exact_match"].value == pytest.approx(sum(same) / len(same))
    assert found["exact_match"].value <= found["token_agreement"].value < 1


def test_a_model_that_answers_nothing_is_told_what_can(polls):
    folder, task, _, _ = polls
    with pytest.raises(VlmEdgeError, match="of kind hallucination"):
        evaluate(folder / "engine", TaskSpec(kind="vqa", data=task.data), threads=1)
