"""Generated scenes: the same files on every host, right answers, and questions that need the image."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_edge.data import load_dataset
from vlm_edge.data.loading import content_digest
from vlm_edge.data.scene_folder import write_scenes
from vlm_edge.data.scenes import COLORS, SHAPES, SIDE
from vlm_edge.errors import RecipeError, VlmEdgeError

CALIBRATION = Path(__file__).parents[2] / "calibration"
SIDES = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}


def lines(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Lines of 1,250 scenes with questions, other ones than the shipped manifest's."""
    folder = tmp_path_factory.mktemp("asked")
    write_scenes("vqa", 3, "test", 1250, folder)
    return folder, lines(folder)


def fitting(things, words):
    """Positions of the things that words such as ``large red circle`` or ``crosses`` fit."""
    *attributes, noun = words.split()
    noun = {"things": "thing", "crosses": "cross"}.get(noun, noun.removesuffix("s") if noun != "cross" else noun)
    wanted = {*attributes, *([] if noun == "thing" else [noun])}
    return [i for i, t in enumerate(things) if wanted <= {t["size"], t["color"], t["shape"]}]


def the(things, words):
    (only,) = fitting(things, words)
    return only


def related(things, first, relation, second):
    if relation in SIDES:
        axis, sign = SIDES[relation]
        return (things[first][axis] - things[second][axis]) * sign > 0
    back, front = (first, second) if relation == "behind" else (second, first)
    return front in things[back]["behind"]


RELATION = "(left of|right of|above|below|behind|in front of)"
READINGS = [
    (r"is there a (.+)", lambda t, a: bool(fitting(t, a))),
    (r"how many (\w+|\w+ things) are there", lambda t, a: len(fitting(t, a))),
    (
        rf"how many things are {RELATION} the (.+)",
        lambda t, r, a: sum(related(t, i, r, the(t, a)) for i in range(len(t))),
    ),
    (
        r"how many things have the same (\w+) as the (.+)",
        lambda t, k, a: sum(each[k] == t[the(t, a)][k] for each in t) - 1,
    ),
    (r"are there more (.+) than (.+)", lambda t, a, b: len(fitting(t, a)) > len(fitting(t, b))),
    (r"are there as many (.+) as (.+)", lambda t, a, b: len(fitting(t, a)) == len(fitting(t, b))),
    (
        r"is the (.+) larger than the (.+)",
        lambda t, a, b: (t[the(t, a)]["size"], t[the(t, b)]["size"]) == ("large", "small"),
    ),
    (rf"is the (.+) {RELATION} the (.+)", lambda t, a, r, b: related(t, the(t, a), r, the(t, b))),
    (r"is the (.+) the same (\w+) as the (.+)", lambda t, a, k, b: t[the(t, a)][k] == t[the(t, b)][k]),
    (
        r"what (\w+) is the thing of the same (\w+) as the (.+)",
        lambda t, k, s, a: [e[k] for i, e in enumerate(t) if i != the(t, a) and e[s] == t[the(t, a)][s]],
    ),
    (
        rf"what (\w+) is the (\w+|\w+ thing) {RELATION} the (.+)",
        lambda t, k, w, r, a: [t[i][k] for i in fitting(t, w) if i != the(t, a) and related(t, i, r, the(t, a))],
    ),
]


def read(question, things):
    """The answer, from the description alone."""
    found = [(rule, match) for form, rule in READINGS if (match := re.fullmatch(form + r"\?", question))]
    (rule, match), *_ = found
    answer = rule(things, *match.groups())
    if isinstance(answer, list):
        (answer,) = answer
    return {True: "yes", False: "no"}[answer] if isinstance(answer, bool) else str(answer)


def inside(thing, more=0.0):
    """(SIDE, SIDE) of bool: the pixels whose centres a thing covers, if its radius were that much larger."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    u, v = ((at - thing[axis]) / (thing["radius"] + more) for axis, at in (("x", x), ("y", y)))
    return {
        "circle": u**2 + v**2 <= 1,
        "square": np.maximum(abs(u), abs(v)) <= 7 / 8,
        "triangle": (v <= 3 / 4) & (abs(u) * 7 / 4 <= v + 1),
        "cross": (np.minimum(abs(u), abs(v)) <= 3 / 8) & (np.maximum(abs(u), abs(v)) <= 1),
    }[thing["shape"]]


class TestFiles:
    @pytest.mark.parametrize(
        ("kind", "digest"),
        [
            ("vqa", "ff0f53fb6c7e06240d8ddedac5a12f3f060ae44c00e524359d496cd01346a10c"),
            ("retrieval", "b74030d7b166bea32cd7c454aa08adb7710f0e1a74caf33848fb440c01f87ca4"),
        ],
    )
    def test_are_the_same_on_every_host(self, kind, digest, tmp_path):
        write_scenes(kind, 2**64 - 1, "a part", 20, tmp_path)
        assert content_digest(tmp_path) == digest

    @pytest.mark.parametrize("name", ["scenes", "scenes-retrieval"])
    def test_the_shipped_manifests_digest_holds(self, name):
        data = load_dataset(CALIBRATION / f"{name}.yaml", "test")
        assert len({sample.image for sample in data.samples}) == 1250
        assert len(data.samples) == (5000 if name == "scenes" else 1250)

    def test_are_made_once(self, write_manifest):
        manifest = write_manifest(source={"generator": "scenes", "images": 3})
        first = [sample.image for sample in load_dataset(manifest, "test").samples]
        written = first[0].stat().st_mtime_ns
        assert [sample.image for sample in load_dataset(manifest, "test").samples] == first
        assert first[0].stat().st_mtime_ns == written

    def test_parts_and_seeds_differ(self, tmp_path):
        found = set()
        for seed, part in ((0, "a"), (0, "b"), (1, "a")):
            folder = tmp_path / f"{seed}{part}"
            folder.mkdir()
            write_scenes("vqa", seed, part, 5, folder)
            found |= {path.read_bytes() for path in folder.glob("*.bmp")}
        assert len(found) == 15


class TestScenes:
    def test_answers_are_what_the_description_says(self, asked):
        _, rows = asked
        assert len(rows) == 5000
        wrong = [
            (row["question"], row["answer"]) for row in rows if read(row["question"], row["things"]) != row["answer"]
        ]
        assert wrong == []
        assert {row["slice"] for row in rows} == {"existence", "counting", "comparison", "relation", "attribute"}

    def test_scenes_have_two_to_six_things_that_overlap(self, asked):
        scenes = [row["things"] for row in asked[1][::4]]
        assert {len(things) for things in scenes} == {2, 3, 4, 5, 6}
        assert sum(any(thing["behind"] for thing in things) for things in scenes) > len(scenes) / 2
        assert {(t["size"], t["color"], t["shape"]) for things in scenes for t in things} == {
            (size, color, shape) for size in ("small", "large") for color in COLORS for shape in SHAPES
        }

    def test_what_is_behind_is_covered_and_half_of_each_thing_is_seen(self, asked):
        for row in asked[1][:800:4]:
            things = row["things"]
            owner = np.full((SIDE, SIDE), -1)
            for index, thing in enumerate(things):
                owner[inside(thing)] = index
            for index, thing in enumerate(things):
                mask = inside(thing)
                assert (owner[mask] == index).mean() > 0.4
                covering = {int(each) for each in np.unique(owner[mask]) if (owner[mask] == each).sum() >= 14} - {index}
                assert covering <= set(thing["behind"])
                for front in thing["behind"]:
                    assert front > index
                    assert (inside(thing, 0.5) & inside(things[front], 0.5)).sum() >= 8

    def test_pixels_show_the_things(self, asked):
        folder, rows = asked
        for row in rows[:800:4]:
            image = np.asarray(Image.open(folder / row["file_name"]).convert("RGB")).astype(int)
            assert image.shape == (SIDE, SIDE, 3)
            for index, thing in enumerate(row["things"]):
                if any(inside(front, 1)[thing["y"], thing["x"]] for front in row["things"][index + 1 :]):
                    continue
                pixel = image[thing["y"], thing["x"]]
                distances = {color: abs(pixel - np.array(level)).max() for color, level in COLORS.items()}
                assert min(distances, key=distances.__getitem__) == thing["color"]
                assert distances[thing["color"]] <= 17


class TestBalance:
    def test_the_question_alone_tells_at_most_45_percent(self, asked, tmp_path):
        write_scenes("vqa", 4, "train", 2500, tmp_path)
        known = [(row["question"], row["answer"]) for row in lines(tmp_path)]
        test = [(row["question"], row["answer"]) for row in asked[1]]
        by_text, by_form = defaultdict(Counter), defaultdict(Counter)
        for question, answer in known:
            by_text[question][answer] += 1
            by_form[form_of(question)][answer] += 1
        usual = Counter(answer for _, answer in known)
        forms = [by_form.get(form_of(question), usual) for question, _ in test]
        texts = [by_text.get(question, form) for (question, _), form in zip(test, forms, strict=True)]
        for tables in (texts, forms):
            assert share([table.most_common(1)[0][0] for table in tables], test) <= 0.45
        assert share(naive_bayes(known, [q for q, _ in test]), test) <= 0.45

    def test_yes_and_no_come_equally_often(self, asked):
        for name in ("existence", "comparison", "relation"):
            found = Counter(row["answer"] for row in asked[1] if row["slice"] == name)
            share = found["yes"] / found.total()
            assert abs(share - 0.5) < 3 * (0.25 / found.total()) ** 0.5 + 0.01


def share(guesses, test):
    return sum(guess == answer for guess, (_, answer) in zip(guesses, test, strict=True)) / len(test)


def form_of(question):
    """The question without what it names."""
    question = re.sub(rf"\b({'|'.join(COLORS)})\b", "COLOR", question)
    return re.sub(r"\b(circle|square|triangle|cross)(e?s)?\b", "SHAPE", re.sub(r"\b(small|large)\b", "SIZE", question))


def naive_bayes(known, questions):
    """Of words and pairs of words in a row."""

    def features(question):
        words = question.rstrip("?").split()
        return {*words, *pairwise(words)}

    answers = sorted({answer for _, answer in known})
    columns = {each: i for i, each in enumerate({each for question, _ in known for each in features(question)})}
    counts, prior = np.full((len(answers), len(columns)), 0.1), np.zeros(len(answers))
    for question, answer in known:
        row = answers.index(answer)
        prior[row] += 1
        counts[row, [columns[each] for each in features(question)]] += 1
    weights = np.log(counts / (prior[:, None] + 0.2))
    found = [[columns[each] for each in features(question) if each in columns] for question in questions]
    return [answers[int((np.log(prior) + weights[:, row].sum(axis=1)).argmax())] for row in found]


class TestCaptions:
    def test_are_right_and_wrong_of_the_mirror_image(self, tmp_path):
        write_scenes("retrieval", 3, "test", 200, tmp_path)
        rows = lines(tmp_path)
        assert len(rows) == 200
        for row, other in zip(rows, [*(rows[i ^ 1] for i in range(200))], strict=True):
            for caption in row["captions"]:
                assert tells(caption, row["things"])
                assert not tells(caption, other["things"])
            assert [thing["x"] for thing in other["things"]] == [SIDE - 1 - thing["x"] for thing in row["things"]]

    def test_each_image_is_a_sample(self, write_manifest):
        data = load_dataset(write_manifest(kind="retrieval", source={"generator": "scenes", "images": 6}), "test")
        assert len(data.samples) == 6
        assert all(
            re.match(r"a (small|large) \w+ \w+ (left|right) of a ", each) for s in data.samples for each in s.answers
        )


def tells(caption, things):
    first, side, second, _, up, third = re.fullmatch(
        r"a (.+?) (left of|right of) a (.+?)( and (above|below) a (.+))?", caption
    ).groups()
    return any(
        related(things, i, side, j) and (up is None or any(related(things, i, up, k) for k in fitting(things, third)))
        for i in fitting(things, first)
        for j in fitting(things, second)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": {"generator": "scenes"}}, "a `generator` needs `images`"),
        ({"source": {"generator": "scenes", "images": 0}}, r"source\.images\.\*: .*1"),
        ({"source": {"generator": "scenes", "images": {}}}, r"source\.images"),
        ({"source": {"generator": "scenes", "images": {"test": 10**9}}}, r"source\.images\.test: .*100"),
        ({"source": {"generator": "scenes", "images": True}}, r"source\.images"),
        ({"source": {"generator": "scenes", "images": 5, "seed": -1}}, r"source\.seed: "),
        ({"source": {"generator": "scenes", "images": 5, "seed": 2**64}}, r"source\.seed: "),
        ({"source": {"generator": "scenes", "images": 5, "folder": "x"}}, "exactly one of `package`, `folder` and"),
        ({"source": {"folder": "x", "seed": 1}}, "no other source has them"),
        ({"source": {"generator": "scenes", "images": {"train": 5}}}, "splits.test reads `test`, which source.images"),
        ({"source": {"generator": "scens", "images": 5}}, "source.generator: no generator scens"),
        ({"source": {"generator": "scenes", "images": 5}, "kind": "captioning"}, "generator scenes has no captioning"),
    ],
)
def test_faults_of_the_manifest_are_named(changes, message, write_manifest):
    with pytest.raises((RecipeError, VlmEdgeError), match=message):
        load_dataset(write_manifest(**changes), "test")


def test_another_content_than_the_pinned_one_is_refused(write_manifest):
    manifest = write_manifest(source={"generator": "scenes", "images": 2}, digests={"test": "0" * 64})
    with pytest.raises(VlmEdgeError, match=r"digests\.test: the content of .* is [0-9a-f]{64}, not 0000") as caught:
        load_dataset(manifest, "test")
    assert "generated anew" in (caught.value.hint or "")


def test_a_cache_that_cannot_be_written_is_named(write_manifest, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(VlmEdgeError, match="can't write the generated data") as caught:
        load_dataset(write_manifest(source={"generator": "scenes", "images": 2}), "test")
    assert "XDG_CACHE_HOME" in (caught.value.hint or "")
