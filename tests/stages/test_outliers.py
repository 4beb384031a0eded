"""Outlier channels in the zoo's BLIP: the quantize stage finds SmoothQuant by itself, and no answer is lost."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from proto_passes import fold_transposed_constants, with_outliers
from sealed import seal_again

from vlm_edge import api
from vlm_edge.evaluation.accuracy import evaluate
from vlm_edge.processing.manifest import read_manifest

pytestmark = pytest.mark.slow


def test_outlier_channels_cost_no_answers(tmp_path: Path) -> None:
    task = api.find_task(Path("calibration/easy-vqa.yaml"))
    graphs = tmp_path / "float"
    api.run_stage("export", {}, "zoo:blip-easyvqa", graphs)
    wanted = evaluate(graphs, task, threads=1, limit=300)
    for component in read_manifest(graphs).components.values():
        path = graphs / component.file
        model, norms = with_outliers(fold_transposed_constants(onnx.load(path)))
        assert norms > 0
        onnx.save(model, path)
    seal_again(graphs)
    facts = api.run_stage("quantize", {"samples": 64, "sensitivity": "none"}, graphs, tmp_path / "int8", data=task.data)
    for component in facts["components"].values():
        first = component["attempts"][0]
        assert first["scheme"] == "int8"
        assert first["cosine"] < 0.999
        assert component["scheme"] == "int8-smooth"
        assert min(output["cosine"] for output in component["outputs"].values()) > 0.9995
    got = evaluate(tmp_path / "int8", task, threads=1, limit=300)
    changed = sum(one != other for one, other in zip(wanted.predictions, got.predictions, strict=True))
    assert changed <= 1
