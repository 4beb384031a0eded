"""Questions about a scene, with their answers: existence, counting, comparison, relations, attributes by a relation.

The answer is drawn before the question that has it, so that the question alone tells little: yes and no come equally
often, and rare counts are asked for more often than they are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

from vlm_edge.data.scenes import COLORS, SHAPES, SIZES, Draws, Scene, Thing

Question = tuple[str, str]
"""(question, answer)."""
CLEAR = 6
"""Pixels by which a thing is further to one side than another, where a question asks for that."""
_AGAIN = 12
_VALUES: dict[str, tuple[str, ...]] = {"size": tuple(SIZES), "color": tuple(COLORS), "shape": SHAPES}
_COUNT_WEIGHTS = (1, 2, 3, 6, 12, 20, 20)
"""Of a count from 0 to 6, where a question is chosen by its answer."""
Filter = dict[str, str]


def fits(thing: Thing, wanted: Filter) -> bool:
    return all(getattr(thing, key) == value for key, value in wanted.items())


def name_of(wanted: Filter, *, plural: bool = False) -> str:
    """``large red circle``, ``red things``."""
    noun = wanted.get("shape", "thing")
    ending = ("es" if noun == "cross" else "s") if plural else ""
    return " ".join([*(wanted[key] for key in ("size", "color") if key in wanted), noun + ending])


def _count(scene: Sequence[Thing], wanted: Filter) -> int:
    return sum(fits(thing, wanted) for thing in scene)


def _reference(draws: Draws, scene: Scene, thing: Thing, hidden: str = "") -> str | None:
    """Words that single a thing out without its attribute ``hidden``, at most two attributes if that is enough."""
    keys = [key for key in _VALUES if key != hidden]
    for length in ((1, 2), (3,)):
        found = [
            name_of(wanted)
            for count in length
            for chosen in combinations(keys, count)
            if _count(scene, wanted := {key: getattr(thing, key) for key in chosen}) == 1
        ]
        if found:
            return draws.pick(found)
    return None


def _gap(thing: Thing, other: Thing, side: str) -> int:
    """Pixels by which ``thing`` is further to ``side`` than ``other``."""
    return {
        "left of": other.x - thing.x,
        "right of": thing.x - other.x,
        "above": other.y - thing.y,
        "below": thing.y - other.y,
    }[side]


SIDES = ("left of", "right of", "above", "below")


def _existence(draws: Draws, scene: Scene) -> Question | None:
    """Whether something is there; what is not there differs from something there in one attribute."""
    keys = draws.pick((("color", "shape"), ("size", "shape"), ("size", "color"), ("size", "color", "shape")))
    answer = draws.below(2) == 1
    for _ in range(_AGAIN):
        thing = draws.pick(scene)
        wanted = {key: getattr(thing, key) for key in keys}
        if not answer:
            key = draws.pick(keys)
            wanted[key] = draws.pick(_VALUES[key])
        if (_count(scene, wanted) > 0) == answer:
            return f"is there a {name_of(wanted)}?", _yes(answer)
    return None


def _counting(draws: Draws, scene: Scene) -> Question | None:
    key = draws.pick(tuple(_VALUES))
    found = [({key: value}, _count(scene, {key: value})) for value in _VALUES[key]]
    if draws.below(8) == 0:
        found = [({}, len(scene))]
    wanted, count = draws.pick([each for each in found for _ in range(_COUNT_WEIGHTS[each[1]])])
    return f"how many {name_of(wanted, plural=True)} are there?", str(count)


def _counting_by_relation(draws: Draws, scene: Scene) -> Question | None:
    anchor, side = draws.pick(scene), draws.pick((*SIDES, "color", "shape"))
    others = [thing for thing in scene if thing is not anchor]
    if side in _VALUES:
        count, hidden, words = _count(others, {side: getattr(anchor, side)}), side, f"have the same {side} as"
    else:
        gaps = [_gap(thing, anchor, side) for thing in others]
        if any(abs(gap) < CLEAR for gap in gaps):
            return None
        count, hidden, words = sum(gap > 0 for gap in gaps), "", f"are {side}"
    if draws.below(20) >= _COUNT_WEIGHTS[count]:
        return None
    name = _reference(draws, scene, anchor, hidden)
    return None if name is None else (f"how many things {words} the {name}?", str(count))


def _more(draws: Draws, scene: Scene) -> Question | None:
    """Whether there are more of one kind than of another, or as many; neither of them is missing."""
    filters = [{key: value} for key in ("color", "shape") for value in _VALUES[key]]
    counts = [(wanted, count) for wanted in filters if (count := _count(scene, wanted))]
    equal = draws.below(2) == 1
    holding: dict[bool, list[tuple[Filter, Filter]]] = {True: [], False: []}
    for (first, many), (second, few) in product(counts, counts):
        if first != second:
            holding[many == few if equal else many > few].append((first, second))
    if not holding[True] or not holding[False]:
        return None
    answer = draws.below(2) == 1
    one, other = (name_of(wanted, plural=True) for wanted in draws.pick(holding[answer]))
    words = f"as many {one} as {other}" if equal else f"more {one} than {other}"
    return f"are there {words}?", _yes(answer)


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _larger(draws: Draws, scene: Scene) -> Question | None:
    pairs = [(a, b) for a in scene for b in scene if a is not b]
    answer = draws.below(2) == 1
    fitting = [(a, b) for a, b in pairs if (a.radius > b.radius + 1) == answer]
    if not fitting or len(fitting) == len(pairs):
        return None
    return _asked(draws, scene, draws.pick(fitting), "size", "larger than", answer)


def _asked(
    draws: Draws, scene: Scene, pair: tuple[Thing, Thing], hidden: str, relation: str, answer: bool
) -> Question | None:
    first, second = (_reference(draws, scene, thing, hidden) for thing in pair)
    if first is None or second is None:
        return None
    return f"is the {first} {relation} the {second}?", _yes(answer)


def _beside(draws: Draws, scene: Scene) -> Question | None:
    first, second = draws.pair(len(scene))
    pair, side = (scene[first], scene[second]), draws.pick(SIDES)
    gap = _gap(*pair, side)
    return None if abs(gap) < CLEAR else _asked(draws, scene, pair, "", side, gap > 0)


def _in_depth(draws: Draws, scene: Scene) -> Question | None:
    """Whether one of two things, one of which covers the other, is behind or in front."""
    pairs = [(thing, scene[front]) for thing in scene for front in thing.behind]
    if not pairs:
        return None
    back, front = draws.pick(pairs)
    relation, answer = draws.pick(("behind", "in front of")), draws.below(2) == 1
    pair = (back, front) if (relation == "behind") == answer else (front, back)
    return _asked(draws, scene, pair, "", relation, answer)


def _alike(draws: Draws, scene: Scene) -> Question | None:
    key, answer = draws.pick(("color", "shape")), draws.below(2) == 1
    pairs = [(a, b) for a in scene for b in scene if a is not b]
    fitting = [(a, b) for a, b in pairs if (getattr(a, key) == getattr(b, key)) == answer]
    if not fitting or len(fitting) == len(pairs):
        return None
    return _asked(draws, scene, draws.pick(fitting), key, f"the same {key} as", answer)


def _attribute_beside(draws: Draws, scene: Scene) -> Question | None:
    """The colour of the one thing of a shape, or the shape of the one of a colour, to one side of another thing."""
    asked, key = draws.pick((("color", "shape"), ("shape", "color")))
    anchor, side = draws.pick(scene), draws.pick(SIDES)
    value = draws.pick([getattr(thing, key) for thing in scene if thing is not anchor])
    gaps = [(thing, _gap(thing, anchor, side)) for thing in scene if fits(thing, {key: value}) and thing is not anchor]
    fitting = [thing for thing, gap in gaps if gap > 0]
    if len(fitting) != 1 or any(abs(gap) < CLEAR for _, gap in gaps):
        return None
    name = _reference(draws, scene, anchor)
    words = f"what {asked} is the {name_of({key: value})} {side}"
    return None if name is None else (f"{words} the {name}?", getattr(fitting[0], asked))


def _attribute_in_depth(draws: Draws, scene: Scene) -> Question | None:
    pairs = [(thing, scene[front]) for thing in scene for front in thing.behind]
    if not pairs:
        return None
    relation = draws.pick(("behind", "in front of"))
    ordered = pairs if relation == "behind" else [(front, back) for back, front in pairs]
    thing, anchor = draws.pick(ordered)
    if sum(other is anchor for _, other in ordered) != 1:
        return None
    asked, name = draws.pick(("color", "shape")), _reference(draws, scene, anchor)
    return None if name is None else (f"what {asked} is the thing {relation} the {name}?", getattr(thing, asked))


def _attribute_alike(draws: Draws, scene: Scene) -> Question | None:
    """The shape of the one other thing of the same colour, or the colour of the one other of the same shape."""
    asked, key = draws.pick((("color", "shape"), ("shape", "color")))
    anchor = draws.pick(scene)
    alike = [thing for thing in scene if thing is not anchor and getattr(thing, key) == getattr(anchor, key)]
    name = _reference(draws, scene, anchor, key) if len(alike) == 1 else None
    if name is None:
        return None
    return f"what {asked} is the thing of the same {key} as the {name}?", getattr(alike[0], asked)


Template = Callable[[Draws, Scene], Question | None]
TEMPLATES: dict[str, tuple[int, tuple[Template, ...]]] = {
    "existence": (3, (_existence,)),
    "counting": (4, (_counting, _counting, _counting_by_relation)),
    "comparison": (3, (_more, _larger)),
    "relation": (5, (_beside, _beside, _in_depth, _alike)),
    "attribute": (5, (_attribute_beside, _attribute_beside, _attribute_in_depth, _attribute_alike)),
}
"""Kind of question: its weight, and what asks it."""


def ask(draws: Draws, scene: Scene, count: int) -> Iterator[tuple[str, str, str]]:
    """``count`` different questions about a scene, each as (kind, question, answer)."""
    kinds = [kind for kind, (weight, _) in TEMPLATES.items() for _ in range(weight)]
    asked: set[str] = set()
    while len(asked) < count:
        kind = draws.pick(kinds)
        for _ in range(_AGAIN):
            found = draws.pick(TEMPLATES[kind][1])(draws, scene)
            if found is not None and found[0] not in asked:
                asked.add(found[0])
                yield (kind, *found)
                break
