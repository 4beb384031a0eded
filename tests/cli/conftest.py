"""A store with three artifacts, and a run that refers to two of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vlm_edge.cli.main import main
from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.record import RECORD_NAME, RunRecord, read_record
from vlm_edge.core.store import Store, key_of
from vlm_edge.core.toolbox import Toolbox


@dataclass(frozen=True)
class Workplace:
    """A store and a runs folder, and the command line on them."""

    store: Path
    runs: Path
    kept: tuple[str, ...] = ()
    unreferenced: str = ""
    toolbox: Toolbox | None = None

    def invoke(self, *arguments: str) -> Result:
        options = ["--store", str(self.store), "--runs", str(self.runs)]
        return CliRunner().invoke(main, [*options, *arguments], obj=self.toolbox)


def seal(store: Store, stage: str, kind: ArtifactKind, content: bytes) -> str:
    key = key_of({"stage": stage})
    with store.begin(key) as (out, _):
        (out / "model.bin").write_bytes(content)
        artifact, _ = store.seal(key, kind, {"stage": stage}, {}, 1.5)
    return artifact.digest


@pytest.fixture
def sample_record() -> RunRecord:
    return read_record(Path(__file__).parents[1] / "report" / "run.json")


@pytest.fixture
def empty(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "store", tmp_path / "runs")


@pytest.fixture
def workplace(tmp_path: Path, sample_record: RunRecord) -> Workplace:
    store = Store(tmp_path / "store")
    graphs = seal(store, "export", ArtifactKind.GRAPHS, b"g" * 1000)
    engine = seal(store, "compile", ArtifactKind.ENGINE, b"e" * 2_000_000)
    gone = seal(store, "prune", ArtifactKind.CHECKPOINT, b"c" * 500)
    variants = [variant.model_copy(update={"runs": []}) for variant in sample_record.variants]
    variants = [variant.model_copy(update={"artifacts": {"graphs": graphs, "engine": engine}}) for variant in variants]
    record = sample_record.model_copy(update={"variants": variants})
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    (folder / RECORD_NAME).write_text(json.dumps(record.model_dump(mode="json")))
    return Workplace(tmp_path / "store", tmp_path / "runs", (graphs, engine), gone)
