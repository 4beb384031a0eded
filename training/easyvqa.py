"""easy-VQA as arrays, its question templates, and the word-level tokenizer of the reference models.

Data source: the PyPI package `easy_vqa` (Victor Zhou, MIT licence).
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import easy_vqa
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from training.render import COLOR_NAMES, SHAPES

VALIDATION_IMAGES = 200
ANSWERS: tuple[str, ...] = (*SHAPES, *COLOR_NAMES, "yes", "no")
QUESTION_TYPES: tuple[str, ...] = ("shape", "color", "yes/no")


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, 64, 64, 3] and questions: (index of the image, question, answer)."""

    images: NDArray[np.uint8]
    questions: list[tuple[int, str, str]]

    def subset(self, indices: Iterable[int]) -> Split:
        """The images at `indices` with their questions, renumbered."""
        chosen = list(indices)
        position = {old: new for new, old in enumerate(chosen)}
        questions = [(position[i], q, a) for i, q, a in self.questions if i in position]
        return Split(self.images[chosen], questions)


def load_split(name: str) -> Split:
    """Loads the "train" or the "test" split."""
    if name == "train":
        paths, (questions, answers, ids) = easy_vqa.get_train_image_paths(), easy_vqa.get_train_questions()
    elif name == "test":
        paths, (questions, answers, ids) = easy_vqa.get_test_image_paths(), easy_vqa.get_test_questions()
    else:
        raise ValueError(f"unknown split {name!r}; known: train, test")
    order = sorted(paths)
    position = {image_id: index for index, image_id in enumerate(order)}
    images = np.stack([np.asarray(Image.open(paths[image_id]).convert("RGB")) for image_id in order])
    return Split(images, [(position[i], q, a) for q, a, i in zip(questions, answers, ids, strict=True)])


def split_validation(train: Split) -> tuple[Split, Split]:
    """Parts the train split into (training, validation); the last 200 images are the validation slice."""
    cut = len(train.images) - VALIDATION_IMAGES
    return train.subset(range(cut)), train.subset(range(cut, len(train.images)))


def answer_question(question: str, shape: str, color: str) -> str | None:
    """The answer of an easy-VQA question for an image of one `color` `shape`; None if the question does not fit it."""
    words = question.rstrip("?").split()
    subjects = [word for word in words if word in SHAPES or word in COLOR_NAMES]
    subject = subjects[0] if subjects else None
    if words[0] == "what":
        if subject is not None and subject not in (shape, color):
            return None
        return color if "color" in words else shape
    negated = "not" in words or "no" in words
    return "yes" if (subject in (shape, color)) != negated else "no"


def question_type(answer: str) -> str:
    """The type of a question, told by its answer: shape, color or yes/no."""
    if answer in SHAPES:
        return "shape"
    return "color" if answer in COLOR_NAMES else "yes/no"


def infer_labels(split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shape and colour of each image as far as its questions tell: int64 [n] each, -100 where they do not."""
    candidates = {i: {(s, c) for s in SHAPES for c in COLOR_NAMES} for i in range(len(split.images))}
    for image, question, answer in split.questions:
        candidates[image] = {(s, c) for s, c in candidates[image] if answer_question(question, s, c) == answer}
    shapes = np.full(len(split.images), -100, dtype=np.int64)
    colors = np.full(len(split.images), -100, dtype=np.int64)
    for image, pairs in candidates.items():
        known_shapes, known_colors = {s for s, _ in pairs}, {c for _, c in pairs}
        if len(known_shapes) == 1:
            shapes[image] = SHAPES.index(known_shapes.pop())
        if len(known_colors) == 1:
            colors[image] = COLOR_NAMES.index(known_colors.pop())
    return shapes, colors


class QuestionSampler:
    """Draws questions that fit an image, about a quarter open ones, and as many "yes" as "no"."""

    def __init__(self, questions: Iterable[str]) -> None:
        unique = sorted(set(questions))
        self._by_label: dict[tuple[int, int], dict[str, list[tuple[str, str]]]] = {}
        for s, shape in enumerate(SHAPES):
            for c, color in enumerate(COLOR_NAMES):
                groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
                for question in unique:
                    answer = answer_question(question, shape, color)
                    if answer is not None:
                        groups[answer if answer in ("yes", "no") else "open"].append((question, answer))
                self._by_label[s, c] = dict(groups)

    def sample(self, shape: int, color: int, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Draws `count` (question, answer) pairs."""
        groups = self._by_label[shape, color]
        kinds = rng.choice(["open", "yes", "no"], size=count, p=[0.3, 0.35, 0.35])
        return [groups[kind][int(rng.integers(len(groups[kind])))] for kind in kinds]


def build_tokenizer(texts: Iterable[str], special: dict[str, str], max_length: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer: every word of `texts` is one token, other ASCII text falls into characters.

    special maps the names of PreTrainedTokenizerFast's special tokens to their text; the ids follow its order.  The
    entries "cls_token" and "sep_token" frame each text; a "bos_token" is in the vocabulary and not added to texts.
    """
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())})
    characters = string.ascii_lowercase + string.digits
    tokens = [*special.values(), *words, *characters, *string.punctuation, *(f"##{c}" for c in characters)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    cls, sep = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **special)
