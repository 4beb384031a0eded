"""TensorRT's optimization profiles hold every shape that a family's pipeline feeds.

No TensorRT is needed for that, nor does it say that TensorRT builds them.
"""

from __future__ import annotations

from pathlib import Path

from family_checkpoints import Exported
from tiny_families import TINY

from vlm_edge.backends.tensorrt.profiles import dimension_ranges, profile_shapes
from vlm_edge.stages.compile_references import BATCHES, reference_runs

SUBJECTS = list(TINY)


def test_every_shape_that_is_fed_is_inside(subject: Exported, tmp_path: Path) -> None:
    manifest = subject.manifest
    ranges = dimension_ranges(manifest, max(BATCHES))
    runs = reference_runs(subject.folder, manifest, 1, 0, tmp_path)
    for name, component in manifest.components.items():
        shapes = profile_shapes(component, ranges)
        for feed, _ in runs[name]:
            for key, (least, usual, most) in shapes.items():
                given = feed[key].shape
                assert all(low <= size <= high for low, size, high in zip(least, given, most, strict=True)), (
                    f"{name}: {key}: {given} is outside of {least} to {most}"
                )
                assert all(low <= size <= high for low, size, high in zip(least, usual, most, strict=True))
