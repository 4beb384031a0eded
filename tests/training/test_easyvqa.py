"""The question templates that training draws from say what easy-VQA says."""

import numpy as np
import pytest

from training.easyvqa import (
    ANSWERS,
    QuestionSampler,
    Split,
    answer_question,
    build_tokenizer,
    infer_labels,
    load_split,
    split_validation,
)
from training.render import COLOR_NAMES, SHAPES

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@pytest.fixture(scope="module")
def train() -> Split:
    return load_split("train")


def test_templates_give_the_answers_of_the_data(train: Split) -> None:
    shapes, colors = infer_labels(train)
    known = [(i, q, a) for i, q, a in train.questions if shapes[i] >= 0 and colors[i] >= 0]
    assert len(known) > 30_000
    for image, question, answer in known:
        assert answer_question(question, SHAPES[shapes[image]], COLOR_NAMES[colors[image]]) == answer


def test_open_questions_about_another_shape_do_not_fit() -> None:
    assert answer_question("what color is the circle?", "triangle", "red") is None
    assert answer_question("what is the blue shape?", "triangle", "red") is None


def test_validation_slice_shares_no_image_with_training(train: Split) -> None:
    training, validation = split_validation(train)
    assert (len(training.images), len(validation.images)) == (3800, 200)
    assert len(training.questions) + len(validation.questions) == len(train.questions)
    np.testing.assert_array_equal(np.concatenate([training.images, validation.images]), train.images)


def test_sampled_questions_fit_and_balance_yes_and_no(train: Split) -> None:
    sampler = QuestionSampler(question for _, question, _ in train.questions)
    drawn = sampler.sample(SHAPES.index("circle"), COLOR_NAMES.index("teal"), 2000, np.random.default_rng(0))
    assert all(answer_question(question, "circle", "teal") == answer for question, answer in drawn)
    answers = [answer for _, answer in drawn]
    assert abs(answers.count("yes") - answers.count("no")) < 200
    assert {"circle", "teal"} <= set(answers)


def test_tokenizer_keeps_answers_whole_and_knows_every_ascii_text(train: Split) -> None:
    tokenizer = build_tokenizer([*(q for _, q, _ in train.questions[:500]), *ANSWERS], SPECIAL_TOKENS, 32)
    assert all(len(tokenizer(answer)["input_ids"]) == 3 for answer in ANSWERS)
    ids = tokenizer("Zebra-crossing, QUIZ 42 (why?)")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
