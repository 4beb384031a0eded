"""A pytest fixture that judges runs, for a release that is gated by a test.

    def test_release(vlm_edge_gate):
        vlm_edge_gate("runs/quickstart").assert_met()

pytest loads this module through its entry point in every project that has vlm-edge installed, so nothing else is
imported before the fixture is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vlm_edge.core.gate import Gate


class GatedRun:
    """A run that was judged. ``gate`` has the verdict and every budget's judgement."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def assert_met(self) -> None:
        """Fail the test unless every budget is met; undecided and not measured are no pass."""
        from vlm_edge.report.numbers import gate_lines

        if self.gate.verdict.value != "pass":
            pytest.fail("\n".join(gate_lines(self.gate)), pytrace=False)


@pytest.fixture(scope="session")
def vlm_edge_gate(request: pytest.FixtureRequest) -> Callable[..., GatedRun]:
    """Judge a run: ``vlm_edge_gate(RUN, recipe=, variant=, against=, tolerances=)``, as ``vlm-edge gate`` does.

    RUN, RUN2 and the recipe are files or folders; relative ones start at pytest's rootdir. ``tolerances`` is a mapping
    such as ``{"max_drop_pt": 0.2, "max_slowdown": None}``.
    """
    root = request.config.rootpath

    def judge(
        run: str | Path,
        *,
        recipe: str | Path | None = None,
        variant: str | None = None,
        against: str | Path | None = None,
        tolerances: dict[str, Any] | None = None,
    ) -> GatedRun:
        from vlm_edge.api import Against, gate_run
        from vlm_edge.core.gate import Tolerances

        allowed = Tolerances.model_validate(tolerances or {})
        other = Against(root / against, allowed) if against is not None else None
        _, gate = gate_run(
            root / run,
            recipe=root / recipe if recipe is not None else None,
            variant=variant,
            against=other,
        )
        return GatedRun(gate)

    return judge
