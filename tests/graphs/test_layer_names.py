"""Layers are named by the module they were exported from, where weights don't tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser
from proto_passes import fold_transposed_constants, graph_of, layer_names, lowered, quantized_layers, with_node_names

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.families.base import ComponentExport
from vlm_edge.graphs.layers import module_scope
from vlm_edge.stages.export_graph import export_component

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # torch's, on its own exporter

FORM = lowering_of("onnxruntime", "x86-vnni")
LINEARS = ["layers.0.q_proj", "layers.0.o_proj", "layers.1.q_proj", "layers.1.o_proj", "lm_head"]


class Attention(torch.nn.Module):
    """As in a language model's decoder: projections without biases, and products of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = (torch.nn.Linear(32, 32, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q_proj(x)
        return self.o_proj(torch.softmax(q @ x.transpose(1, 2), -1) @ x)


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Attention() for _ in range(2))
        self.lm_head = torch.nn.Linear(32, 48, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        for layer in self.layers:
            x = layer(x)
        return (self.lm_head(x),)


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    """As torch.onnx leaves it, with its notes."""
    torch.manual_seed(0)
    program = torch.onnx.export(
        Decoder().eval(), (torch.randn(1, 5, 32),), dynamo=True, opset_version=20, verbose=False
    )
    assert program is not None
    return with_node_names(fold_transposed_constants(program.model_proto))


def test_modules_are_read_from_the_exporter_s_notes(exported: onnx.ModelProto) -> None:
    names = layer_names(exported)
    kinds = {node.name: node for node in exported.graph.node}
    constants = {tensor.name for tensor in exported.graph.initializer}
    linears = sorted(name for node, name in names.items() if kinds[node].input[1] in constants)
    assert linears == sorted(LINEARS)
    products = {name for node, name in names.items() if kinds[node].input[1] not in constants}
    assert len(products) == 4
    assert {name.partition("/")[0] for name in products} == {"layers.0", "layers.1"}


def test_quantized_layers_have_the_same_names(exported: onnx.ModelProto) -> None:
    quantized = lowered(exported, "int8-dynamic", FORM)
    assert not any(node.metadata_props for node in quantized.graph.node)
    assert [layer.name for layer in quantized_layers(exported, quantized)] == LINEARS


def test_the_export_stage_keeps_the_names_without_the_notes(tmp_path: Path) -> None:
    axes = {"x": {0: "batch", 1: "tokens"}}
    shapes: dict[str, tuple[int | str, ...]] = {"logits": ("batch", "tokens", 48)}
    module = ComponentExport(Decoder().eval(), {"x": torch.randn(2, 5, 32)}, axes, shapes)
    export_component("decoder", module, tmp_path, opset=20)
    model = onnx.load(tmp_path / "decoder.onnx")
    assert not any(node.metadata_props for node in model.graph.node)
    found = [layer.name for layer in quantized_layers(model, lowered(model, "int8-weights", FORM))]
    assert found == LINEARS
    assert set(LINEARS) < set(layer_names(model).values())


def test_without_notes_a_node_has_its_own_name() -> None:
    model: onnx.ModelProto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2, 4] x) => (float[2, 4] y) { y = MatMul (x, val_3) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "val_3"))
    (node,) = model.graph.node
    node.name = "node_MatMul_12"
    assert layer_names(model) == {"node_MatMul_12": "node_MatMul_12"}
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['linear_3']")
    assert module_scope(graph_of(model).graph[0]) == ""
    node.metadata_props[0].value = "['', 'model', 'model.head', 'linear_3']"
    assert layer_names(model) == {"node_MatMul_12": "model.head"}
