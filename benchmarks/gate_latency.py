"""Can the latency gates be trusted on this machine? An engine against itself, and against itself slowed by 10%.

    python benchmarks/gate_latency.py [ENGINE] [--data calibration/easy-vqa.yaml] [--gates 200] [--json FILE]

Each gate is what a run does: the A/A control of the baseline, the pair, measured on while a verdict is open, the
control again where it alone is in the way, and the verdicts of the tool's own code. As in a run of three variants,
three gates share a control: two of the engine against itself, one against it slowed.

- An engine against itself (a copy of its folder) on ``p50_speedup: 0.95`` and ``p90_speedup: 0.95``: at most 1% of the
  gates may FAIL. On the impossible ``p90_speedup: 1.5``: none may PASS.
- Half as many gates of the engine against itself slowed by 10% (a spin inside the timed region of each query): at
  least 95% must FAIL on 0.95.

A gate takes 10 to 40 s, the longer the busier the machine; ``--gates 20`` gives a first idea in a quarter of an hour.
``--json`` is written after every gate, and a file that holds gates already is gone on with. Exits with 1 when a bar is
missed. ``--simulate`` instead draws rounds with known truth and prints how often the
interval of a ratio holds it, with the measurement's looks, and how often a bound at the truth itself (the worst place
for a measurement that goes on until its verdict is decided) is passed or missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.api import run_stage
from vlm_edge.core.budget import Budgets, Verdict, bounds_of, judge
from vlm_edge.core.decided import IsOpen, measure_until_decided
from vlm_edge.core.measurement import LatencyAsked, Measurement, Timed
from vlm_edge.core.stage import TaskSpec
from vlm_edge.evaluation.latency import Bench, LatencySettings, measure_latency
from vlm_edge.evaluation.worker_process import WorkerProcess
from vlm_edge.statistics.timing import LOOKED_AGAIN, LOOKED_AT, Estimate, geometric_mean

BOUND, IMPOSSIBLE, SLOWER = 0.95, 1.5, 0.10
SHARE = 3
FALSE_FAILS, POWER = 0.01, 0.95
SLOWED = (sys.executable, "-P", str(Path(__file__).with_name("_slowed_worker.py")), str(SLOWER))
BUDGETS = Budgets.model_validate({"latency": {"p50_speedup": BOUND, "p90_speedup": BOUND}})
UNREACHABLE = Budgets.model_validate({"latency": {"p90_speedup": IMPOSSIBLE}})


def slowed_candidate(name: str, **rest: Any) -> WorkerProcess:
    """The candidate's worker spins, the baseline's doesn't."""
    return WorkerProcess(name, **rest, **({"command": SLOWED} if name.startswith("candidate") else {}))


def verdicts(budgets: Budgets, pair: Sequence[Measurement], control: Sequence[Measurement]) -> list[Verdict]:
    return [judge(bound, pair, control=control).verdict for bound in bounds_of(budgets)]


def gate(bench: Bench, engine: Path, copy: Path, control: Timed, slow: bool) -> dict[str, Any]:
    """One gate: the pair, its verdicts, and the time that it took."""
    began = time.monotonic()
    bench = replace(bench, worker=slowed_candidate) if slow else bench

    def take(candidate: Path, is_open: IsOpen) -> Timed:
        return measure_latency(engine, candidate, bench, is_open=is_open)

    pair = measure_until_decided(take, engine, copy, bounds_of(BUDGETS), control.measurements)
    found = verdicts(BUDGETS, pair.measurements, control.measurements)
    return {
        "slow": slow,
        "verdict": overall_of(found),
        "bounds": [verdict.value for verdict in found],
        "impossible": verdicts(UNREACHABLE, pair.measurements, control.measurements)[0].value,
        "control": _numbers(control, "control"),
        "pair": _numbers(pair, "speedup"),
        "rounds": [control.conditions["rounds"], pair.conditions["rounds"]],
        "stopped": pair.conditions["stopped"],
        "control_again": "control" in pair.conditions,
        "load_average": pair.conditions["meanwhile"]["load_average"]["after"][0],
        "disturbed": {role: each["disturbed_share"] for role, each in pair.conditions["engines"].items()},
        "cpu_waiting_share": pair.conditions["meanwhile"]["cpu_waiting_share"],
        "seconds": round(time.monotonic() - began, 1),
    }


def overall_of(found: Sequence[Verdict]) -> str:
    """As a variant's verdict: FAIL if any bound is missed."""
    return next((v.value for v in (Verdict.FAIL, Verdict.NOT_MEASURED, Verdict.UNDECIDED) if v in found), "pass")


def _numbers(timed: Timed, kind: str) -> dict[str, list[float]]:
    wanted = {f"latency_{p}_{kind}": p for p in ("p50", "p90")}
    rows = {wanted[each.metric]: each for each in timed.measurements if each.metric in wanted}
    return {p: [round(number, 4) for number in (row.low, row.value, row.high)] for p, row in rows.items()}


def summary(gates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of the bars, and how often the intervals held the truth."""
    same, slow = [g for g in gates if not g["slow"]], [g for g in gates if g["slow"]]

    def holds(rows: Sequence[dict[str, Any]], key: str, p: str, truth: float) -> str:
        inside = sum(row[key][p][0] <= truth <= row[key][p][2] for row in rows)
        return f"{inside}/{len(rows)}"

    def tally(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
        return {verdict.value: sum(row["verdict"] == verdict.value for row in rows) for verdict in Verdict}

    return {
        "same": tally(same),
        "slowed": tally(slow),
        "impossible_passes": sum(g["impossible"] == "pass" for g in gates),
        "control_holds_1": {p: holds(gates, "control", p, 1.0) for p in ("p50", "p90")},
        "pair_holds_1": {p: holds(same, "pair", p, 1.0) for p in ("p50", "p90")},
        "slowed_holds_truth": {p: holds(slow, "pair", p, 1 / (1 + SLOWER)) for p in ("p50", "p90")},
        "median_half_width_pct": {
            p: round(100 * float(np.median([g["pair"][p][2] / g["pair"][p][1] - 1 for g in gates])), 2)
            for p in ("p50", "p90")
        },
        "seconds_a_gate": round(float(np.mean([g["seconds"] for g in gates])), 1),
        "load_average": [min(g["load_average"] for g in gates), max(g["load_average"] for g in gates)],
    }


def missed(found: dict[str, Any]) -> list[str]:
    """The bars that were missed."""
    same, slow = sum(found["same"].values()), sum(found["slowed"].values())
    checks = {
        f"{found['same']['fail']} of {same} A/A gates FAIL": found["same"]["fail"] > FALSE_FAILS * same,
        f"{found['impossible_passes']} impossible budgets PASS": found["impossible_passes"] > 0,
        f"{found['slowed']['fail']} of {slow} slowed engines FAIL": found["slowed"]["fail"] < POWER * slow,
    }
    return [text for text, bad in checks.items() if bad]


def simulate(settings: LatencySettings, runs: int = 20_000, most: int = 96) -> list[tuple[float, float, float]]:
    """Rows of (held, passed, missed): how often the interval holds a ratio of 1, and what a bound of 1 is judged.

    The measurement looks at 6, 12 ... rounds for precision, its time is over at 6 or 18 rounds, and while the bound
    lies in the interval it goes on to twice the rounds, at most ``most``.
    """
    generator, rows = np.random.default_rng(0), []
    print(f"{'spread':>8} {'noise':>9} {'over at':>8} {'held':>7} {'passed':>7} {'missed':>7} {'rounds':>7}")
    for spread, noise, over in itertools.product((0.005, 0.02, 0.1, 0.4), ("normal", "student"), (6, 18)):
        draws = generator.normal(size=(runs, most)) if noise == "normal" else generator.standard_t(3, (runs, most))
        ends = [_simulated(np.exp(spread * row), settings, over) for row in draws]
        held, passed, missed_ = (
            float(np.mean([test(found) for found, _ in ends]))
            for test in (lambda f: f.low <= 1 <= f.high, lambda f: f.low >= 1, lambda f: f.high < 1)
        )
        rounds = np.mean([count for _, count in ends])
        print(f"{spread:8.3f} {noise:>9} {over:8} {held:7.4f} {passed:7.4f} {missed_:7.4f} {rounds:7.1f}", flush=True)
        rows.append((held, passed, missed_))
    return rows


def _simulated(ratios: NDArray[np.float64], settings: LatencySettings, over: int) -> tuple[Estimate, int]:
    """The interval at which the rounds ``ratios`` end, and how many they were."""
    count, confidence, most = settings.look_rounds, LOOKED_AT, len(ratios)
    while True:
        found = geometric_mean(ratios[:count], confidence)
        assert found is not None
        precise = count % settings.look_rounds == 0 and found.high / found.value <= 1 + settings.precision
        if confidence == LOOKED_AT and not precise and count < over:
            count += settings.look_rounds
            continue
        if count == most or not found.low < 1 <= found.high:
            return found, count
        count, confidence = min(2 * count, most), LOOKED_AGAIN


def quantized(folder: Path, data: Path) -> Path:
    """The reference model as an INT8 engine for this host."""
    run_stage("export", {}, "zoo:blip-easyvqa", folder / "graphs")
    run_stage("quantize", {}, folder / "graphs", folder / "int8", data=data)
    run_stage("compile", {}, folder / "int8", folder / "engine")
    return folder / "engine"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "engine",
        type=Path,
        nargs="?",
        help="a compiled engine or a bundle; default: zoo:blip-easyvqa, quantized and compiled here",
    )
    parser.add_argument("--data", type=Path, default=Path("calibration/easy-vqa.yaml"))
    parser.add_argument("--kind", default="vqa")
    parser.add_argument("--gates", type=int, default=200, help="A/A gates; half as many with the slowed engine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--seconds",
        type=float,
        default=LatencySettings().seconds,
        help="least time of each measurement that is not precise before",
    )
    parser.add_argument("--round-seconds", type=float, default=LatencySettings().round_seconds)
    parser.add_argument("--json", type=Path, help="write every gate and the summary to this file")
    parser.add_argument("--simulate", action="store_true")
    arguments = parser.parse_args()
    settings = LatencySettings(seconds=arguments.seconds, round_seconds=arguments.round_seconds)
    if arguments.simulate:
        simulate(settings)
        return 0
    task = TaskSpec(kind=arguments.kind, data=arguments.data.resolve())
    asked = LatencyAsked(percentiles=(0.5, 0.9))
    bench = Bench(task, arguments.threads, asked, settings)
    gates: list[dict[str, Any]] = []
    if arguments.json and arguments.json.is_file():
        gates = json.loads(arguments.json.read_text(encoding="utf-8"))["gates"]
    control: Timed | None = None
    with tempfile.TemporaryDirectory() as scratch:
        engine = arguments.engine.resolve() if arguments.engine else quantized(Path(scratch), arguments.data)
        copy = Path(scratch) / "copy"
        shutil.copytree(engine, copy)
        for number in range(len(gates) + 1, math.ceil(1.5 * arguments.gates) + 1):
            slow = number % SHARE == 0
            if control is None or number % SHARE == 1:
                control = measure_latency(engine, engine, bench)
            found = gate(bench, engine, copy, control, slow)
            gates.append(found)
            pair = "  ".join(f"{p} {found['pair'][p]}" for p in found["pair"])
            kind = "slowed" if slow else "same"
            print(
                f"{number:4} {kind:6} {found['verdict']:10} {pair}  control {found['control']['p50']}"
                f"  rounds {found['rounds']}  load {found['load_average']}  seconds {found['seconds']}",
                flush=True,
            )
            if arguments.json:
                text = json.dumps({"gates": gates, "summary": summary(gates)}, indent=1)
                arguments.json.write_text(text + "\n", encoding="utf-8")
    result = summary(gates)
    print(json.dumps(result, indent=1))
    bad = missed(result)
    print("; ".join(bad) if bad else "all bars met")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
