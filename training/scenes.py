"""Scenes as arrays: images, labels of their patches, questions as token ids, and the places that they speak of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from training.easyvqa import build_tokenizer
from vlm_edge.data.scene_questions import SIDES, ask, fits
from vlm_edge.data.scenes import COLORS, SHAPES, SIDE, SIZES, Draws, Scene, Thing, draw_scene, mask_of, render

PATCH = 8
GRID = SIDE // PATCH
GROUPS, GROUP = 3, 8
"""Groups of an image's questions, by length, and the questions of each."""
MAX_QUESTION = 24
IGNORE = -100
MIN_PIXELS = 12
"""Of a thing in a patch that is labelled with it."""
VALUES: dict[str, tuple[str, ...]] = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES)}
LABELS = {"centre": 2, "color": 6, "shape": 4, "size": 2, "dx": 4, "dy": 4, "behind": 2, "front": 2}
PATCH_LABELS = {"patch_color": 7, "patch_shape": 5, "row": GRID, "column": GRID}
"""Classes of each label of a patch: of the thing whose centre it holds; of what is seen most in it, and its place."""
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "bos_token": "[DEC]",
}
_PHRASE = re.compile(r"the (?:(small|large) )?(?:(\w+) )??(circle|square|triangle|cross|thing)\b")


@dataclass(frozen=True)
class SceneData:
    """Scenes with GROUPS * GROUP questions each, sorted by length.

    images: uint8 (n, 64, 64, 3); labels: int8 (n, 64) each, IGNORE where there is none; tokens: int16 (n, questions,
    MAX_QUESTION), 0 behind the end; answers: int16 (n, questions); words and places: int8 (n, questions, 2), the
    position of a noun among the tokens and the patch with the centre of the thing that it names, -1 for none.
    """

    images: NDArray[np.uint8]
    labels: dict[str, torch.Tensor]
    tokens: torch.Tensor
    answers: torch.Tensor
    words: torch.Tensor
    places: torch.Tensor


def scene_tokenizer() -> PreTrainedTokenizerFast:
    """The words of some thousand questions, which are all there are."""
    draws = Draws("words")
    asked = [each for _ in range(2000) for each in ask(draws, draw_scene(draws), 4)]
    counts = [str(count) for count in range(10)]
    return build_tokenizer([*counts, *(text for _, *pair in asked for text in pair)], SPECIAL_TOKENS, MAX_QUESTION)


def scene_data(tokenizer: PreTrainedTokenizerFast, name: str, count: int) -> SceneData:
    """Draw ``count`` scenes of the part ``name``, which is to be none of a manifest's."""
    images, rows, answers, texts, places = [], [], [], [], []
    for index in range(count):
        draws = Draws("training", name, index)
        scene = draw_scene(draws)
        images.append(render(scene, draws))
        rows.append(_labels(scene))
        asked = [each for _ in range(GROUPS * GROUP // 4) for each in ask(draws, scene, 4)]
        questions = sorted(asked, key=lambda each: len(each[1].split()))
        texts += [question for _, question, _ in questions]
        answers += [answer for _, _, answer in questions]
        places += [_grounding(scene, question) for _, question, _ in questions]
    shape = (count, GROUPS * GROUP)
    ids = tokenizer(texts, padding="max_length", max_length=MAX_QUESTION)["input_ids"]
    grounding = torch.tensor(places, dtype=torch.int8).reshape(*shape, 2, 2)
    return SceneData(
        np.stack(images),
        {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]},
        torch.tensor(ids, dtype=torch.int16).reshape(*shape, MAX_QUESTION),
        torch.tensor(tokenizer.convert_tokens_to_ids(answers), dtype=torch.int16).reshape(shape),
        grounding[..., 0],
        grounding[..., 1],
    )


def _patch_of(thing: Thing) -> int:
    return thing.y // PATCH * GRID + thing.x // PATCH


def _labels(scene: Scene) -> dict[str, NDArray[Any]]:
    labels = {key: np.full(GRID * GRID, IGNORE, dtype=np.int8) for key in (*LABELS, *PATCH_LABELS)}
    labels["centre"][:] = 0
    labels["row"][:], labels["column"][:] = divmod(np.arange(GRID * GRID), GRID)
    in_front = {front for thing in scene for front in thing.behind}
    owner = np.zeros(SIDE * SIDE, dtype=np.int64)
    for index, thing in enumerate(scene):
        bits = np.frombuffer(mask_of(thing).to_bytes(SIDE * SIDE // 8, "little"), dtype=np.uint8)
        owner[np.unpackbits(bits, bitorder="little") > 0] = index + 1
        found = {key: values.index(getattr(thing, key)) for key, values in VALUES.items()}
        found |= {"centre": 1, "dx": thing.x % PATCH // 2, "dy": thing.y % PATCH // 2}
        found |= {"behind": int(bool(thing.behind)), "front": int(index in in_front)}
        for key, value in found.items():
            labels[key][_patch_of(thing)] = value
    cut = owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, PATCH * PATCH)
    seen = np.stack([(cut == index).sum(axis=1) for index in range(len(scene) + 1)], axis=1)
    most = seen[:, 1:].argmax(axis=1)
    for key, values in (("patch_color", VALUES["color"]), ("patch_shape", VALUES["shape"])):
        names = np.array([values.index(getattr(thing, key[6:])) + 1 for thing in scene])
        labels[key][:] = np.where(seen[:, 1:].max(axis=1) >= MIN_PIXELS, names[most], IGNORE)
        labels[key][seen[:, 0] == PATCH * PATCH] = 0
    return labels


def _grounding(scene: Scene, question: str) -> list[list[int]]:
    """[token, patch] of the things that ``the ...`` names in a question, two of them, [-1, -1] for none."""
    found: list[list[int]] = []
    for match in _PHRASE.finditer(question):
        size, color, shape = match.groups()
        wanted = {"size": size, "color": color, "shape": None if shape == "thing" else shape}
        fitting = [thing for thing in scene if fits(thing, {key: value for key, value in wanted.items() if value})]
        side = next((side for side in SIDES if question[match.end() :].startswith(f" {side} ")), None)
        if len(fitting) > 1 and side is not None and question.startswith("what"):
            anchor = _grounding(scene, question[match.end() :])[0][1]  # the thing to that side of the other one
            fitting = [thing for thing in fitting if anchor >= 0 and _is_beside(thing, anchor, side)]
        if len(fitting) == 1:
            found.append([len(question[: match.end()].split()), _patch_of(fitting[0])])  # [CLS] comes first
    return [*found, [-1, -1], [-1, -1]][:2]


def _is_beside(thing: Thing, anchor: int, side: str) -> bool:
    """Whether a thing is to one side of a patch; the margins of questions make patches enough, or nearly."""
    row, column = divmod(anchor, GRID)
    x, y = thing.x // PATCH, thing.y // PATCH
    return {"left of": x < column, "right of": x > column, "above": y < row, "below": y > row}[side]
