"""A graph that breaks TensorRT's rules is refused before TensorRT is asked, by the node's name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from tiny_graphs import component, write_dual_encoder

from vlm_edge.backends.compiling import CompileJob
from vlm_edge.backends.reference import ReferenceRuns
from vlm_edge.backends.tensorrt.compile import compile_component
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import read_manifest


def compiled(folder: Path, zero_point: int) -> Any:
    """Compile one quantized product for TensorRT."""
    write_dual_encoder(folder)
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        net (float[4, 4] x) => (float[4, 4] y) {
          q = QuantizeLinear (x, scale, zero)
          d = DequantizeLinear (q, scale, zero)
          y = MatMul (d, d)
        }"""
    )
    values = {"scale": np.array(0.02, np.float32), "zero": np.array(zero_point, np.int8)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.save(model, folder / "net.onnx")
    row, runs = component(model, "net.onnx"), ReferenceRuns(folder / "runs")
    job = CompileJob("net", folder / "net.onnx", row, read_manifest(folder), runs, folder / "out", folder / "scratch")
    return compile_component(job)


def test_a_violation_names_the_node_and_the_compiler_s_words(tmp_path: Path) -> None:
    with pytest.raises(VlmEdgeError, match=r"net\.onnx: .*zero-point: q: its zero point is 3.*Non-zero") as error:
        compiled(tmp_path, 3)
    assert "engine: tensorrt" in str(error.value.hint)


def test_a_graph_that_keeps_the_rules_goes_on_to_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it raises ImportError
    with pytest.raises(VlmEdgeError, match="the Python package tensorrt is not installed"):
        compiled(tmp_path, 0)
