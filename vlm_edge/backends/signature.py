"""Whether a manifest's row is that of the file: the names, dtypes and sizes of its inputs, and its outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import Component

Tensor = tuple[str | None, Sequence[object] | None]
"""A dtype and a shape, whose dynamic sizes are no integers; None where the file doesn't say."""
_HINT = "the manifest belongs to another file: export or compile it again"


def check_signature(path: Path, component: Component, inputs: Mapping[str, Tensor], outputs: Collection[str]) -> None:
    """Nothing, if the component is what the manifest says.

    Args:
        path: the component's file, for the message.
        component: the manifest's row.
        inputs: what the file says of its inputs.
        outputs: the names of its outputs.

    Raises:
        VlmEdgeError: it isn't: the first difference.
    """
    if missing := [name for name in component.outputs if name not in outputs]:
        raise VlmEdgeError(
            f"{path}: no output {missing[0]!r}, which the manifest names; it has {', '.join(outputs)}", _HINT
        )
    if other := set(component.inputs) ^ set(inputs):
        raise VlmEdgeError(f"{path}: input {min(other)!r} is the manifest's or the file's alone", _HINT)
    for name, (dtype, shape) in inputs.items():
        spec = component.inputs[name]
        fits = dtype in (None, spec.dtype) and (shape is None or len(shape) == len(spec.shape))
        pairs = zip(spec.shape, shape or (), strict=False)
        if not fits or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
            raise VlmEdgeError(
                f"{path}: input {name!r} is {dtype} {list(shape or ())}, in the manifest {spec.dtype} "
                f"{list(spec.shape)}",
                _HINT,
            )
