"""A record of the models that OpenVINO compiles for an engine, with their sizes, from its own API."""

from __future__ import annotations

from typing import Any

import pytest


class CompiledModels(list[Any]):
    """Every model that OpenVINO compiled, in order."""

    @property
    def kinds(self) -> set[str]:
        """``fixed`` and ``any``, for models whose inputs' sizes are all known and for others."""
        return {"fixed" if is_fixed(model) else "any" for model in self}


def is_fixed(model: Any) -> bool:
    """Whether a compiled model knows every size of its inputs."""
    return all(port.partial_shape.is_static for port in model.inputs)


def input_shapes(model: Any) -> dict[str, list[int]]:
    """The shapes of a fixed model's inputs by name."""
    return {port.any_name: list(port.shape) for port in model.inputs}


def watch_openvino(monkeypatch: pytest.MonkeyPatch) -> CompiledModels:
    """The models that are compiled from now on."""
    openvino: Any = pytest.importorskip("openvino")
    models = CompiledModels()

    class Core(openvino.Core):
        def compile_model(self, *arguments: Any) -> Any:
            models.append(super().compile_model(*arguments))
            return models[-1]

    monkeypatch.setattr(openvino, "Core", Core)
    return models
