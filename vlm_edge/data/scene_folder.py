"""A part of the generator ``scenes`` as a folder of images with ``metadata.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlm_edge.data.kinds import TaskKind
from vlm_edge.data.scene_questions import CLEAR, ask, name_of
from vlm_edge.data.scenes import SIDE, Draws, Scene, Thing, bmp_bytes, draw_scene, render

QUESTIONS = 4
CAPTIONS = 2
"""Of an image."""


def write_scenes(kind: TaskKind, seed: int, part: str, images: int, folder: Path) -> None:
    """Write ``images`` scenes of 2 to 6 things, each 64x64, with what ``kind`` asks for.

    A line of ``metadata.jsonl`` also holds ``things``, the scene's description from back to front. For ``vqa`` there
    are 4 lines an image, one a question. For ``retrieval`` every second image is the mirror image of the one before, so
    that their captions differ in "left of" and "right of" alone.
    """
    lines: list[str] = []
    for index, (scene, draws, rows) in enumerate(_scenes(kind, seed, part, images)):
        name = f"{index:05}.bmp"
        (folder / name).write_bytes(bmp_bytes(render(scene, draws)))
        things = [asdict(thing) for thing in scene]
        lines += [json.dumps({"file_name": name, **row, "things": things}) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _scenes(kind: TaskKind, seed: int, part: str, images: int) -> Iterator[tuple[Scene, Draws, list[dict[str, Any]]]]:
    """(scene, what draws its colours and ground, its lines) of every image."""
    for index in range(images):
        draws = Draws(seed, part, index if kind == "vqa" else index // 2)
        scene = draw_scene(draws)
        if kind == "vqa":
            asked = ask(draws, scene, QUESTIONS)
            yield scene, draws, [{"question": text, "answer": answer, "slice": name} for name, text, answer in asked]
            continue
        while not any(_left_of(scene)):
            scene = draw_scene(draws)
        if index % 2:
            scene = tuple(replace(thing, x=SIDE - 1 - thing.x) for thing in scene)
            draws = Draws(seed, part, index // 2, "mirrored")
        yield scene, draws, [{"captions": list(dict.fromkeys(_caption(draws, scene) for _ in range(CAPTIONS)))}]


def _left_of(scene: Scene) -> list[tuple[Thing, Thing]]:
    """Pairs with the first thing to the left of the second, and no two things of their looks the other way round."""
    reverse = {(_words(a), _words(b)) for a in scene for b in scene if a.x > b.x}
    return [(a, b) for a in scene for b in scene if b.x - a.x >= CLEAR and (_words(a), _words(b)) not in reverse]


def _caption(draws: Draws, scene: Scene) -> str:
    """``a large red circle left of a small blue square and above a small red cross``, or the first half of that."""
    pair = draws.pick(_left_of(scene))
    side = draws.pick(("left of", "right of"))
    thing, other = pair if side == "left of" else pair[::-1]
    caption = f"a {_words(thing)} {side} a {_words(other)}"
    third = draws.pick([each for each in scene if each is not thing])
    if abs(third.y - thing.y) < CLEAR:
        return caption
    return f"{caption} and {'above' if third.y > thing.y else 'below'} a {_words(third)}"


def _words(thing: Thing) -> str:
    return name_of({"size": thing.size, "color": thing.color, "shape": thing.shape})
