"""The default int8 path on a small MobileViT: real integer operators, and outputs near the float graph's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from proto_passes import quantize_graph
from small_mobilevit import INTEGER_CONVOLUTIONS, pictures, small_mobilevit

from vlm_edge.backends.lowering import host_isa, lowering_of
from vlm_edge.explain.view import Graph


@pytest.mark.parametrize("isa", ["x86-vnni", "x86", "arm"])
def test_a_mobilevit_by_the_default_path_keeps_its_outputs_in_integer_convolutions(isa: Any) -> None:
    if isa == "x86-vnni" and host_isa() == "x86":
        pytest.skip("this CPU's products of 8 bits saturate")
    model, held_out = small_mobilevit(), pictures(1, batch=16, seed=1)[0]["pixel_values"]
    graph = quantize_graph(model, "int8", pictures(24), lowering_of("onnxruntime", isa))
    assert {node.name for node in graph.graph.node if node.op_type == "QLinearConv"} == set(INTEGER_CONVOLUTIONS)
    kernels = Counter(node.op_type for node in graph.graph.node)
    assert kernels["MatMulIntegerToFloat"] == 7
    assert kernels["Conv"] == 2  # of the image's three channels, and depthwise
    index = Graph(graph)
    readers = [index.consumers[node.output[0]] for node in graph.graph.node if node.op_type == "QLinearConv"]
    assert ["QLinearConv"] in [[reader.op_type for reader in each] for each in readers]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    wanted, found = (
        ort.InferenceSession(each.SerializeToString(), options).run(None, {"pixel_values": held_out})[0]
        for each in (model, graph)
    )
    cosines = (wanted * found).sum(axis=1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 0.99
