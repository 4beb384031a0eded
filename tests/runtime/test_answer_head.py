"""The answer_head pipeline on a hand-written graph, against plain numpy; and as tasks and the command line use it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sealed import seal_again
from tiny_answer_head import ANSWERS, logits, write_answer_head
from tiny_graphs import save_image

from vlm_edge.cli.main import main
from vlm_edge.core.stage import TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import evaluate
from vlm_edge.runtime import AnswerHeadPipeline, load_pipeline

QUESTIONS = ["what color is it", "is it red", "is it", "what is blue no yes", "green", "is it red", "yes yes yes"]
SIZES = [(8, 8), (8, 16), (12, 8), (16, 8), (8, 12), (8, 8), (8, 8)]


def pictures(seed: int = 2) -> list[np.ndarray]:
    """Each around its own colour."""
    generator = np.random.default_rng(seed)
    noise = [generator.integers(-20, 21, (*size, 3)) for size in SIZES]
    return [np.clip(generator.integers(0, 256, 3) + each, 0, 255).astype(np.uint8) for each in noise]


@pytest.fixture
def pipeline(tmp_path: Path) -> AnswerHeadPipeline:
    write_answer_head(tmp_path / "engine")
    found = load_pipeline(tmp_path / "engine", threads=1)
    assert isinstance(found, AnswerHeadPipeline)
    return found


def test_answers_are_the_likeliest_whatever_shares_their_batch(tmp_path: Path) -> None:
    weights = write_answer_head(tmp_path)
    pipeline = load_pipeline(tmp_path, threads=1)
    assert isinstance(pipeline, AnswerHeadPipeline)
    expected = np.array([logits(weights, *pair) for pair in zip(pictures(), QUESTIONS, strict=True)])
    answers = [ANSWERS[place] for place in expected.argmax(axis=1)]
    assert len(set(answers)) > 2
    encoded = pipeline.encode_images(pictures())
    for batch_size in (1, 3, 16):
        np.testing.assert_allclose(
            pipeline.logits(encoded, QUESTIONS, batch_size=batch_size), expected, rtol=1e-4, atol=1e-3
        )
    assert pipeline.answer_batch(encoded, QUESTIONS) == answers
    assert [pipeline.answer(*pair) for pair in zip(pictures(), QUESTIONS, strict=True)] == answers
    shares = pipeline.scores(encoded, QUESTIONS)
    reference = 1 / (1 + np.exp(-np.clip(expected.astype(np.float64), -500, 500)))
    np.testing.assert_allclose(shares, reference, atol=1e-3)


def test_nothing_to_do_and_what_does_not_fit(pipeline: AnswerHeadPipeline) -> None:
    none = pipeline.encode_images([])
    assert pipeline.answer_ids(none, []) == []
    with pytest.raises(VlmEdgeError, match="0 rows of features for 1 texts"):
        pipeline.answer_batch(none, ["is it red"])


def test_a_manifest_without_answers(tmp_path: Path) -> None:
    write_answer_head(tmp_path)
    seal_again(tmp_path, labels=None)
    with pytest.raises(VlmEdgeError, match=r"labels or image\.tiles: missing for an answer_head pipeline"):
        load_pipeline(tmp_path)


def test_it_is_evaluated_as_other_models_that_answer(tmp_path: Path, pipeline: AnswerHeadPipeline) -> None:
    answers = [pipeline.answer(*pair) for pair in zip(pictures(), QUESTIONS, strict=True)]
    part = tmp_path / "data" / "test"
    part.mkdir(parents=True)
    rows = []
    for number, (image, question) in enumerate(zip(pictures(), QUESTIONS, strict=True)):
        save_image(part / f"{number}.png", image)
        right = answers[number] if number % 2 else "purple"
        rows.append({"file_name": f"{number}.png", "question": question, "answer": right})
    (part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {"name": "toy", "kind": "vqa", "source": {"folder": "data"}, "licence": "CC0"}
    (tmp_path / "data.yaml").write_text(json.dumps(content | {"splits": {"test": {"from": "test"}}}))
    outcomes = evaluate(tmp_path / "engine", TaskSpec(kind="vqa", data=tmp_path / "data.yaml"), threads=1)
    assert outcomes.predictions == tuple(answers)
    assert outcomes.scores["accuracy"] == tuple(float(number % 2) for number in range(len(answers)))
    assert outcomes.tokens is not None
    assert [ANSWERS[place] for (place,) in outcomes.tokens] == answers


def test_the_command_line_asks_it(tmp_path: Path, pipeline: AnswerHeadPipeline) -> None:
    image = save_image(tmp_path / "image.png", pictures()[1])
    result = CliRunner().invoke(main, ["answer", str(tmp_path / "engine"), str(image), QUESTIONS[1], "--json"])
    found = json.loads(result.stdout)
    assert found["answer"] == pipeline.answer(image, QUESTIONS[1])
    assert (found["question"], set(found["probabilities"])) == (QUESTIONS[1], set(ANSWERS))
