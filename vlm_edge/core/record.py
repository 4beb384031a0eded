"""The run record, ``runs/NAME/run.json``: every variant with its artifacts, measurements and verdicts.

The format is described in docs/run-record.md; ``format`` is raised when a reader of the old one would misread it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from vlm_edge.checked import Digest, JsonObject, Timestamp, first_fault
from vlm_edge.core.budget import Judgement, Verdict
from vlm_edge.core.measurement import Measurement
from vlm_edge.core.plan import BASELINE
from vlm_edge.errors import VlmEdgeError, shown
from vlm_edge.facts import FACTS, Facts, facts_fault

FORMAT: Literal[2] = 2
RECORD_NAME = "run.json"
PREVIOUS_NAME = "run.previous.json"
OUTCOMES_FOLDER = "outcomes"
REGRESSIONS_NAME = "regressions.json"


_Facts = TypeVar("_Facts", bound=Facts)
Seconds = Annotated[float, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StageRun(_Record):
    """One stage on the way to a variant. ``implied`` marks one that the recipe doesn't list at this point."""

    stage: str
    config: JsonObject
    key: Digest
    digest: Digest
    kind: str
    cached: bool
    implied: bool
    wall_s: Seconds
    facts: JsonObject = {}

    @field_validator("facts")
    @classmethod
    def _of_the_stage(cls, facts: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Hold the facts of a stage that is known to their model."""
        if problem := facts_fault(facts, FACTS.get(str(info.data.get("stage")))):
            raise ValueError(problem)
        return facts

    def facts_as(self, kind: type[_Facts]) -> _Facts | None:
        """The facts, if this is the stage that writes ``kind``, and wrote some; else None."""
        written = FACTS.get(self.stage) is kind and bool(self.facts)
        return kind.model_validate(self.facts) if written else None


class VariantRecord(_Record):
    """One point on the ladder; the first is the FP32 baseline.

    ``artifacts`` maps the artifact kind to a digest; ``skipped`` lists samples left out of the accuracy, with why;
    ``emulated`` says that the accuracy is that of another engine on the same graphs, and of which.
    ``notes`` says what was left out of the others' inputs; ``dropped`` marks a variant whose last stage was left out of
    what follows (``on_miss: drop``). ``conditions`` is what was true on the host while the latency was measured.
    ``outcomes`` is the file of every sample's outcome, below the run's folder.
    """

    name: str
    stages: list[str]
    runs: list[StageRun]
    artifacts: dict[str, Digest]
    measurements: list[Measurement]
    verdicts: list[Judgement]
    verdict: Verdict
    unmeasured: str | None = None
    emulated: str | None = None
    skipped: list[dict[str, str]] = []
    notes: list[str] = []
    dropped: bool = False
    conditions: JsonObject = {}
    outcomes: str | None = Field(default=None, pattern=rf"^{OUTCOMES_FOLDER}/[^/\x00]+\.json\.gz$")


class RunRecord(_Record):
    """The result of one run of a recipe. ``best`` names the fastest variant that met every budget, or is null.

    ``incomplete`` says why the run did not reach its end; there is no verdict then, and ``variants`` are those that
    were measured. ``commit`` is the revision of the source tree that the recipe lies in, ``-dirty`` with changes.
    """

    format: Literal[2] = FORMAT
    name: str
    verdict: Verdict
    incomplete: str | None = None
    decided_by: str
    best: str | None
    variants: list[VariantRecord] = Field(min_length=1)
    recipe: JsonObject
    host: JsonObject
    versions: dict[str, str]
    seed: int
    commit: str | None = None
    started: Timestamp
    wall_s: Seconds

    @model_validator(mode="after")
    def _consistent(self) -> RunRecord:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants of one name")
        for field in ("decided_by", "best"):
            name = getattr(self, field)
            if name is not None and name not in names:
                raise ValueError(f"{field}: there is no variant {name[:40]!r}")
        if self.incomplete is not None and self.verdict is not Verdict.NOT_MEASURED:
            raise ValueError("an incomplete run has no verdict but not_measured")
        return self

    def digests(self) -> set[str]:
        """Every artifact that a variant consists of or was made from."""
        return {digest for variant in self.variants for digest in variant.artifacts.values()} | {
            run.digest for variant in self.variants for run in variant.runs
        }


def best_of(variants: Sequence[VariantRecord]) -> str | None:
    """The variant with the highest p90 speed-up among those that met every budget; None when there is none."""
    met = [v for v in reversed(variants) if v.verdict is Verdict.PASS and v.name != BASELINE and v.unmeasured is None]

    def speedup(variant: VariantRecord) -> float:
        return next((m.value for m in variant.measurements if m.metric == "latency_p90_speedup"), 0.0)

    return max(met, key=speedup).name if met else None


def read_record(path: Path) -> RunRecord:
    """Read a run record from a file, or from a run's folder.

    Raises:
        VlmEdgeError: no such file, or it is not a run record of this format.
    """
    file = path / RECORD_NAME if path.is_dir() else path
    try:
        return RunRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise VlmEdgeError(f"{file}: no run record", "give a run's folder, such as runs/quickstart") from error
    except ValidationError as error:
        problem = first_fault(error, RunRecord)
        if error.errors()[0]["loc"] == ("format",):
            given = shown(error.errors()[0]["input"])
            problem = f"format: the record is of format {given}, this version reads {FORMAT}"
        raise VlmEdgeError(f"{file}: {problem}", "run the recipe again with this version") from error
