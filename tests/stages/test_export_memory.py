"""What keeps an export's memory near the checkpoint's size: each remedy on a small model, without measuring."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from vlm_edge.backends.onnxruntime.engine import OnnxRuntimeOptions, session_options
from vlm_edge.checkpoints.weights import load_weights, read_weights
from vlm_edge.core.artifact import Artifact, ArtifactKind
from vlm_edge.core.stage import StageInputs, StageWork
from vlm_edge.families.base import ComponentExport
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.graphs import files
from vlm_edge.stages.export import ExportConfig, run
from vlm_edge.stages.export_check import check_component, load_graph, new_objects_only, return_freed_memory
from vlm_edge.stages.export_graph import export_component, graph_facts
from vlm_edge.stages.export_references import Reference, save_references, saved_references, torch_references

CPU = ["CPUExecutionProvider"]


class Scale(nn.Module):
    """A component of one multiplication, quick to export."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, width + 1))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * self.weight,)


def scale_component(width: int) -> ComponentExport:
    return ComponentExport(Scale(width).eval(), {"x": torch.ones(2, width)}, {"x": {0: "rows"}}, {"y": ("rows", width)})


def test_a_model_takes_the_tensors_that_were_read(tiny_blip: Path) -> None:
    """Without a copy, cast where types differ, and with tied weights still one parameter."""
    loaded = load_checkpoint(tiny_blip)
    model: Any = loaded.model
    embedding, head = "text_decoder.bert.embeddings.word_embeddings", "text_decoder.cls.predictions.decoder"
    assert model.get_submodule(embedding).weight is model.get_submodule(head).weight
    state = read_weights(tiny_blip)
    kept = {name: tensor.data_ptr() for name, tensor in state.items()}
    state["vision_model.post_layernorm.bias"] = state["vision_model.post_layernorm.bias"].double()
    load_weights(model, state, tiny_blip)
    own = dict(model.named_parameters(remove_duplicate=False))
    assert all(tensor.dtype == torch.float32 for tensor in own.values())
    assert {name for name, tensor in own.items() if kept.get(name, tensor.data_ptr()) != tensor.data_ptr()} == {
        "vision_model.post_layernorm.bias"
    }
    assert model.get_submodule(embedding).weight is model.get_submodule(head).weight


def test_no_weight_is_drawn_that_is_read_anyway(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("transformers.CLIPModel._init_weights", lambda _, module: drawn.append(module))
    state = torch.random.get_rng_state()
    loaded = load_checkpoint(tiny_clip)
    assert drawn == []
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(tensor.isfinite().all() for tensor in loaded.model.state_dict().values())


def test_sessions_of_a_check_leave_weights_in_their_file() -> None:
    small, fast = (session_options(1, OnnxRuntimeOptions(memory=memory)) for memory in ("small", "fast"))
    assert (small.enable_cpu_mem_arena, small.enable_mem_pattern) == (False, False)
    assert small.get_session_config_entry("session.disable_prepacking") == "1"
    assert (fast.enable_cpu_mem_arena, fast.enable_mem_pattern) == (True, True)


def test_weights_above_the_protobuf_limit_go_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "EXTERNAL_DATA_BYTES", 1000)
    component = scale_component(512)
    entry = export_component("scale", component, tmp_path, opset=20)
    assert (tmp_path / "scale.onnx.data").stat().st_size == 2048
    references = torch_references("scale", component)
    parity = check_component("scale", references, load_graph(tmp_path / entry.file, entry), 1e-6)
    assert parity == {"max_abs_error": 0.0, "max_relative_error": 0.0}
    assert graph_facts(tmp_path / "scale.onnx")["size_bytes"] > 2048


def test_references_come_back_from_their_files(tmp_path: Path) -> None:
    component = scale_component(4)
    for name in ("scale", "scale_more"):
        save_references(name, component, tmp_path)
    expected, found = list(torch_references("scale", component)), list(saved_references("scale", tmp_path))
    assert [reference.sizes for reference in found] == [{"rows": 2}, {"rows": 1}]
    for one, other in zip(expected, found, strict=True):
        assert other.sizes == one.sizes
        np.testing.assert_array_equal(other.feed["x"], one.feed["x"])
        np.testing.assert_array_equal(other.outputs["y"], one.feed["x"] * np.arange(1.0, 5.0))
    empty = Reference({"past": 0}, {"cache": np.zeros((1, 0, 2), np.float32)}, {"y": np.zeros(1, np.int64)})
    empty.save(tmp_path / "empty.0.npz")
    (again,) = saved_references("empty", tmp_path)
    assert (again.feed["cache"].shape, again.feed["cache"].dtype) == ((1, 0, 2), np.float32)
    assert again.outputs["y"].dtype == np.int64


def test_garbage_of_an_export_is_found_without_going_through_what_was_there_before() -> None:
    def cycle() -> nn.Module:
        module = nn.Module()
        object.__setattr__(module, "itself", module)
        return module

    before = cycle()
    old = weakref.ref(before)
    with new_objects_only():
        young = weakref.ref(cycle())
        del before
        return_freed_memory()
        assert young() is None
        assert old() is not None
    gc.collect()
    assert old() is None
    assert gc.get_freeze_count() == 0


def test_weights_go_beside_the_graphs_and_the_model_before_one_is_loaded(
    tiny_clip: Path, tiny_clip_graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[nn.Module] = []
    elements: list[int] = []

    def loading(*arguments: Any, **settings: Any) -> Any:
        loaded = load_checkpoint(*arguments, **settings)
        models.append(loaded.model)
        return loaded

    def opening(*arguments: Any) -> Any:
        elements.append(sum(tensor.numel() for tensor in models[0].state_dict().values()))
        return load_graph(*arguments)

    monkeypatch.setattr(files, "EXTERNAL_DATA_BYTES", 0)
    monkeypatch.setattr("vlm_edge.families.loading.load_checkpoint", loading)
    monkeypatch.setattr("vlm_edge.stages.export_check.load_graph", opening)
    work = StageWork(out=tmp_path / "out", scratch=tmp_path / "scratch")
    work.out.mkdir()
    run(ExportConfig(), StageInputs(Artifact(ArtifactKind.CHECKPOINT, "0" * 64, tiny_clip)), work)
    assert elements == [0, 0, 0, 0]  # both graphs alone, then both together, one at a time
    assert not (work.scratch / "references").exists()
    assert work.facts["parity"] == tiny_clip_graphs.facts["parity"]
    assert work.facts["composed"] == tiny_clip_graphs.facts["composed"]
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    beside, inside = (
        ort.InferenceSession(folder / "vision_encoder.onnx", providers=CPU).run(None, {"pixel_values": pixels})
        for folder in (work.out, tiny_clip_graphs.folder)
    )
    np.testing.assert_array_equal(beside, inside)
    assert (work.out / "vision_encoder.onnx.data").stat().st_size > (work.out / "vision_encoder.onnx").stat().st_size
