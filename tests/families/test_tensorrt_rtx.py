"""NVIDIA's own parser and builder take every component of every family, in FP32, FP16 and INT8, with its profiles.

A graph that they refuse fails its test with the component's file, the node and NVIDIA's words. That they run it is not
measured: it takes a GPU.
"""

from __future__ import annotations

from pathlib import Path

from family_checkpoints import Exported
from rtx import nvidia, plan
from support_page import hold
from tiny_families import TINY

from vlm_edge.backends.lowering import lowering_of
from vlm_edge.core.stage import StageWork
from vlm_edge.graphs.files import load_graph, save_graph
from vlm_edge.stages.export_half import random_runs, write_half
from vlm_edge.stages.quantize_attempt import quantize_graph

SUBJECTS = list(TINY)


def test_every_component_is_parsed_and_built(subject: Exported, tmp_path: Path) -> None:
    """FP16 graphs agree with the FP32 ones, too: that is a part of writing them."""
    version = ".".join(nvidia().__version__.split(".")[:3])
    lowering = lowering_of("tensorrt", "cuda")
    work = StageWork(out=tmp_path / "out", scratch=tmp_path / "scratch")
    runs = random_runs(subject.folder, subject.manifest, work)
    half, _ = write_half("float16", subject.folder, subject.manifest, runs, work)
    for name, component in subject.manifest.components.items():
        floating, quantized = subject.folder / component.file, tmp_path / f"{name}-int8.onnx"
        for graph in (floating, half / component.file):
            plan(graph, name, subject.manifest)
        feeds = list(runs[name].measured)
        save_graph(quantize_graph(load_graph(floating), "int8", feeds, lowering), quantized)
        plan(quantized, name, subject.manifest)
    hold(subject.name, {f"built by TensorRT-RTX {version}": "FP32, FP16, INT8"})
