"""The build kit of TensorRT-RTX: TensorRT's, with the bindings of the other product."""

from __future__ import annotations

from pathlib import Path

from vlm_edge.backends.kits import Kit, Profile
from vlm_edge.backends.tensorrt.build import plan_of
from vlm_edge.backends.tensorrt.kit import TensorRtKit
from vlm_edge.backends.tensorrt_rtx.wheels import PRODUCT, bindings
from vlm_edge.processing.manifest import Component, PipelineManifest


class TensorRtxKit(TensorRtKit):
    """No scripts: its builder runs wherever vlm-edge does, and keeps no measurements."""

    def scripts(self, kit: Kit, manifest: PipelineManifest) -> dict[str, str]:  # noqa: ARG002
        return {}

    def build(self, graph: Path, component: Component, profile: Profile, out: Path) -> Component:
        path = out / f"{graph.stem}.plan"
        path.write_bytes(plan_of(bindings(), graph, profile, PRODUCT))
        return component.model_copy(update={"file": path.name})
