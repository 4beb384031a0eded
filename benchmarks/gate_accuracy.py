"""Accuracy gates on data whose truth is known: false FAILs, false PASSes, power, and the coverage of intervals.

    python benchmarks/gate_accuracy.py [--gates 200] [--seed 0] [--json]

Every gate draws a test set and two engines' answers, then goes the way of the tool: evaluation.comparison.compare, and
core.budget.judge. Nothing is loaded and no model runs. Exits 1 when a bar is missed.

The answers. Images differ in difficulty: the chance to be right on an image is drawn from a beta distribution of mean
0.93 (what one engine gets right is correlated within an image). Two engines agree but for: churn, which is a share of
shaky images on which either answers afresh, and costs nothing on average; and harm, a share of images on which the
candidate loses each right answer with a certain chance. So the true drop is harm * chance * 0.93, whatever the churn.

The bars. Of gates of an engine against itself (churn alone), at most 1% FAIL, and none PASSes a budget that it misses.
No engine that loses twice a bound which the set is too small to resolve PASSes it. A true drop of twice a bound of one
point FAILs in at least 95% of gates, on sets as large as samples_to_tell plans for 99%. Each end of the
drop's interval misses the truth in at most 2.5% of gates, allowing for the simulation's own scatter: three standard
errors above that.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.budget import AccuracyBudget, Budgets, Verdict, bounds_of, judge
from vlm_edge.core.measurement import Measurement
from vlm_edge.evaluation.comparison import compare
from vlm_edge.evaluation.outcomes import Outcomes
from vlm_edge.statistics.intervals import CONFIDENCE, normal_quantile, smallest_drop

ACCURACY = 0.93
ALIKE = 4.0
"""Sum of the beta distribution's parameters: a correlation of 1 / (1 + 4) = 0.2 between questions of an image."""
TAIL = 0.025
PLANNED = 0.99
MOST_FALSE_FAILS, LEAST_FAILS = 0.01, 0.95
PILOT_IMAGES = 50_000


@dataclass(frozen=True)
class World:
    """A way to draw a test set, and how the candidate differs from the baseline."""

    name: str
    images: int
    questions: int
    shaky: float = 0.03
    harmed: float = 0.0
    chance: float = 0.4

    @property
    def drop(self) -> float:
        """The true drop, in 0..1."""
        return self.harmed * self.chance * ACCURACY


class Row(NamedTuple):
    """One line of the table: how often of ``gates`` it happened, and how often it was allowed to (or had to)."""

    part: str
    world: str
    images: int
    questions: int
    event: str
    count: int
    gates: int
    bar: str
    met: bool


def answers(world: World, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The baseline's and the candidate's scores: (images, questions), 0 or 1."""
    shape = (world.images, world.questions)
    easy = generator.beta(ALIKE * ACCURACY, ALIKE * (1 - ACCURACY), (world.images, 1))
    shared, own = (generator.random(shape) < easy for _ in range(2))
    shaky = generator.random((world.images, 1)) < world.shaky
    harmed = generator.random((world.images, 1)) < world.harmed
    after = np.where(shaky, own, shared) & ~(harmed & (generator.random(shape) < world.chance))
    return shared.astype(np.float64), after.astype(np.float64)


def outcomes(engine: str, scores: NDArray[np.float64]) -> Outcomes:
    """Scores as an evaluation keeps them."""
    images, questions = scores.shape
    return Outcomes(
        task="vqa",
        engine=engine,
        data="simulated",
        ids=tuple(f"{image}-{question}" for image in range(images) for question in range(questions)),
        groups=tuple(str(image) for image in range(images) for _ in range(questions)),
        scores={"accuracy": tuple(scores.ravel().tolist())},
        predictions=("",) * scores.size,
        slices=((),) * scores.size,
    )


def measured(world: World, seed: int) -> list[Measurement]:
    """One gate's measurements."""
    before, after = answers(world, np.random.default_rng(seed))
    return compare(outcomes("baseline", before), outcomes("candidate", after), seed)


def verdict(measurements: list[Measurement], budget: AccuracyBudget) -> Verdict:
    """What one accuracy bound comes to."""
    (bound,) = bounds_of(Budgets(accuracy=budget))
    return judge(bound, measurements).verdict


def against_itself(world: World, gates: int, seed: int) -> list[Row]:
    """A/A: FAILs of budgets that the engine keeps and the set can resolve, and PASSes of one that it misses."""
    finest = smallest_drop(world.images * world.questions)
    cases = [
        (AccuracyBudget(max_drop_pt=max(1.0, 100 * finest)), Verdict.FAIL, MOST_FALSE_FAILS),
        (AccuracyBudget(min_ratio=min(0.99, 1 - finest)), Verdict.FAIL, MOST_FALSE_FAILS),
        (AccuracyBudget(at_least=min(0.92, 1 - finest)), Verdict.FAIL, MOST_FALSE_FAILS),
        (AccuracyBudget(at_least=0.96), Verdict.PASS, 0.0),
    ]
    return counted("A/A", world, cases, gates, seed)


def too_fine(world: World, gates: int, seed: int) -> list[Row]:
    """PASSes of budgets that the set can't resolve, by an engine that misses them by as much again."""
    bound = smallest_drop(world.images * world.questions) / 2
    losing = harmed(world.name, world.images, world.questions, 2 * bound, 0.4, world.shaky)
    cases = [
        (AccuracyBudget(max_drop_pt=100 * bound), Verdict.PASS, 0.0),
        (AccuracyBudget(min_ratio=1 - bound), Verdict.PASS, 0.0),
    ]
    return counted("too fine", losing, cases, gates, seed)


def counted(
    part: str, world: World, cases: list[tuple[AccuracyBudget, Verdict, float]], gates: int, seed: int
) -> list[Row]:
    """How often each budget gets the verdict that it should not, and whether that is within the share allowed."""
    drawn = [measured(world, seed + gate) for gate in range(gates)]
    rows = []
    for budget, wrong, most in cases:
        count = sum(verdict(each, budget) is wrong for each in drawn)
        (bound,) = bounds_of(Budgets(accuracy=budget))
        event = (
            f"{wrong.upper()} of {bound.budget.removeprefix('accuracy.')} {bound}, true drop {100 * world.drop:.2g} pt"
        )
        rows.append(_row(part, world, event, count, gates, f"<= {most:.0%}", count <= most * gates))
    return rows


def power(world: World, bound: float, gates: int, seed: int) -> list[Row]:
    """A true drop of twice the bound, on as many images as planning says it takes; and the set of ``world`` itself."""
    rows = []
    for sized, bar in ((planned(world, bound), True), (world, False)):
        budget = AccuracyBudget(max_drop_pt=100 * bound)
        found = [verdict(measured(sized, seed + gate), budget) for gate in range(gates)]
        fails, passes = (sum(each is wanted for each in found) for wanted in (Verdict.FAIL, Verdict.PASS))
        event = f"FAIL of max_drop_pt <= {100 * bound:g}, true {100 * sized.drop:.2g} pt"
        text = f">= {LEAST_FAILS:.0%}" if bar else "(none: its own n)"
        rows.append(_row("power", sized, event, fails, gates, text, not bar or fails >= LEAST_FAILS * gates))
        rows.append(_row("power", sized, event.replace("FAIL", "PASS"), passes, gates, "<= 0%", passes == 0))
    return rows


def planned(world: World, bound: float) -> World:
    """The same world, with the images that tell its drop from the bound in the share PLANNED of sets.

    The share of changed answers and the design effect are taken from a pilot of PILOT_IMAGES images.
    """
    before, after = answers(World(**{**asdict(world), "images": PILOT_IMAGES}), np.random.default_rng(0))
    change = before - after
    effect = world.questions * change.mean(axis=1).var() / change.var()
    n = samples_to_tell(bound, world.drop, float((change**2).mean()), float(effect), sure=PLANNED)
    name = f"{world.name}: n planned, design effect {effect:.1f}"
    return World(**{**asdict(world), "images": math.ceil(n / world.questions), "name": name})


def samples_to_tell(
    bound: float,
    drop: float,
    changed: float,
    design_effect: float = 1.0,
    confidence: float = CONFIDENCE,
    sure: float = 0.95,
) -> int:
    """The samples that tell a true ``drop`` from ``bound`` (both in 0..1) in the share ``sure`` of all sets.

    Args:
        changed: the share of samples whose answer turns from right to wrong or back.
        design_effect: variance of the mean drop relative to that of as many independent samples.

    Liu, Hsueh, Hsieh & Chen, Statistics in Medicine 21 (2002) 231, section 4:
    n = (z + z_sure)^2 (changed - drop^2) / (drop - bound)^2, times the design effect.
    """
    z = normal_quantile(confidence) + NormalDist().inv_cdf(sure)
    return math.ceil(design_effect * z * z * (changed - drop * drop) / (drop - bound) ** 2)


def coverage(world: World, gates: int, seed: int) -> list[Row]:
    """How often each end of the drop's interval misses the true drop."""
    drops = [
        next(each for each in measured(world, seed + gate) if each.metric == "accuracy_drop_pt")
        for gate in range(gates)
    ]
    truth = 100 * world.drop
    most = _most(gates)
    width = sum(each.high - each.low for each in drops) / gates
    rows = []
    for end, count in (
        ("high < truth", sum(each.high < truth for each in drops)),
        ("low > truth", sum(each.low > truth for each in drops)),
    ):
        event = f"{end} {truth:.2g} pt, mean width {width:.2f} pt"
        rows.append(_row("coverage", world, event, count, gates, f"<= {most / gates:.1%}", count <= most))
    return rows


def _most(gates: int) -> float:
    """How often an end of an interval may miss, and three standard errors of that."""
    return TAIL * gates + 3 * math.sqrt(TAIL * (1 - TAIL) * gates)


def _row(part: str, world: World, event: str, count: int, gates: int, bar: str, met: bool) -> Row:
    return Row(part, world.name, world.images, world.questions, event, count, gates, bar, met)


def harmed(name: str, images: int, questions: int, drop: float, chance: float, shaky: float = 0.03) -> World:
    """A world with the true drop ``drop``."""
    return World(name, images, questions, shaky, drop / chance / ACCURACY, chance)


def simulate(gates: int, seed: int) -> list[Row]:
    """Every part, on sets like easy-VQA's test split, small ones, and ones with a question an image."""
    rows = []
    for world in (
        World("like easy-VQA", 1000, 10),
        World("small", 200, 10),
        World("one question", 1000, 1),
        World("ten", 10, 1),
    ):
        rows += against_itself(world, gates, seed) + too_fine(world, gates, seed)
    for world in (
        harmed("like easy-VQA", 1000, 10, 0.02, 0.4),
        harmed("small, harm gathered", 200, 10, 0.02, 0.9),
        harmed("one question", 1000, 1, 0.02, 0.4),
    ):
        rows += power(world, 0.01, gates, seed)
    for world in (
        World("no harm", 1000, 10),
        World("no harm, small", 200, 10),
        harmed("harm spread", 1000, 10, 0.01, 0.3),
        harmed("harm gathered", 1000, 10, 0.01, 0.9),
        harmed("rare harm", 1000, 10, 0.002, 0.9, shaky=0.0),
        harmed("small, harm spread", 200, 10, 0.01, 0.3),
        harmed("small, rare harm", 200, 10, 0.005, 0.5, shaky=0.0),
        harmed("one question", 1000, 1, 0.01, 0.5),
        harmed("tiny", 100, 1, 0.02, 0.5),
    ):
        rows += coverage(world, 2 * gates, seed)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=int, default=200, help="gates of each kind (coverage: twice as many)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    rows = simulate(arguments.gates, arguments.seed)
    if arguments.json:
        print(json.dumps({"seed": arguments.seed, "rows": [row._asdict() for row in rows]}, indent=1))
    else:
        for row in rows:
            size = f"{row.images:,} x {row.questions}"
            share = f"{row.count:>4} of {row.gates} ({row.count / row.gates:.1%})"
            mark = "" if row.met else "  MISSED"
            print(f"{row.part:<9} {row.world:<48} {size:>11}  {row.event:<48} {share:<20} {row.bar}{mark}")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
