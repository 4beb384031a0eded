"""Float16 costs the reference models no answers, in arithmetic that rounds wherever a device does."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_edge import api
from vlm_edge.core.stage import StageWork
from vlm_edge.evaluation.accuracy import evaluate
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.graphs.passes.half_precision import as_float32
from vlm_edge.processing.manifest import copy_side_files, read_manifest, write_manifest
from vlm_edge.stages.export_half import task_runs, write_half

pytestmark = pytest.mark.slow
SAMPLES, MOST_PT = 1000, 0.5


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("zoo:blip-easyvqa", "calibration/easy-vqa.yaml"),
        ("zoo:clip-easyvqa", "calibration/easy-vqa-zero-shot.yaml"),
    ],
)
def test_no_answers_are_lost(model: str, data: str, tmp_path: Path) -> None:
    task, graphs, rounded = api.find_task(Path(data)), tmp_path / "float32", tmp_path / "rounded"
    api.run_stage("export", {}, model, graphs)
    manifest = read_manifest(graphs)
    work = StageWork(out=tmp_path / "out", scratch=tmp_path / "scratch")
    folder, _ = write_half("float16", graphs, manifest, task_runs(graphs, manifest, task, 32, work), work)
    for each in work.facts["half"]["components"].values():
        assert each["cosine"] > 0.9999
    rounded.mkdir()
    copy_side_files(graphs, rounded, manifest)
    for component in manifest.components.values():
        graph = load_graph(folder / component.file)
        assert as_float32(graph, rounded=True) is not None
        save_graph(graph, rounded / component.file)
    write_manifest(rounded, manifest)
    wanted, got = (evaluate(each, task, threads=1, limit=SAMPLES) for each in (graphs, rounded))
    lost = sum(wanted.scores["accuracy"]) - sum(got.scores["accuracy"])
    changed = sum(one != other for one, other in zip(wanted.predictions, got.predictions, strict=True))
    print(model, len(wanted.ids), "lost", lost, "changed", changed, work.facts["half"]["components"])
    assert 100 * lost / len(wanted.ids) <= MOST_PT
    assert 100 * changed / len(wanted.ids) <= 2 * MOST_PT
