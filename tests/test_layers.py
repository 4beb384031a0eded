"""Imports point down only, and what the command line loads at start is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vlm_edge
from vlm_edge import runtime

PACKAGE = Path(vlm_edge.__file__).parent

# layer -> the layers of this package that it may import from (its own is always allowed)
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "names": set(),
    "machine": set(),
    "files": set(),
    "checked": set(),
    "facts": set(),
    "documents": set(),
    "digests": set(),
    "core": set(),
    "statistics": set(),
    "surgery": {"students"},
    "training": {"families", "processing", "data", "runtime"},
    "quantizers": set(),
    "graphs": {"quantizers"},
    "quantization": {"graphs", "quantizers"},
    "backends": {"processing"},
    "backends (compress)": {"backends", "explain", "graphs", "quantization", "quantizers", "processing"},
    "explain": {"graphs"},
    "processing": set(),
    "data": {"core", "processing"},
    "runtime": {"backends", "processing"},
    "zoo": {"families", "surgery", "checkpoints", "processing"},
    "students": set(),
    "checkpoints": {"processing"},
    "families": {"checkpoints", "surgery", "students", "data", "processing"},
    "stages": {"core", "graphs", "quantization", "quantizers", "backends", "backends (compress)", "surgery", "training",
               "statistics", "families", "checkpoints", "students", "data", "processing", "runtime", "zoo"},
    "evaluation": {"core", "data", "runtime", "backends", "backends (compress)", "processing", "statistics", "explain",
                   "graphs", "quantizers"},
    "report": {"core"},
    "toolbox": {"core", "stages", "evaluation", "backends", "families", "checkpoints", "data", "processing"},
    "api": {"core", "evaluation", "data", "processing", "toolbox"},
    "pytest_plugin": {"api", "core", "report"},
    "cli": {"api", "core", "stages", "evaluation", "report", "runtime", "backends", "families", "checkpoints",
            "processing", "zoo", "data"},
}  # fmt: skip
ANYONE = {"checked", "digests", "documents", "errors", "facts", "files", "machine", "names", "__init__"}
ON_DEVICE = {"__init__", "base", "checks", "engine", "fixed_shapes", "cuda_memory", "wheels"}
"""Modules of backends that a device needs; the others are the layer ``backends (compress)``."""
HEAVY = ("torch", "onnx", "onnxruntime", "transformers", "openvino", "nncf", "tensorrt", "optimum")


@cache
def imported_files(file: Path) -> frozenset[Path]:
    """Modules of this package that a file imports, at its top or inside a function."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {module_file(name) for name in names if name.startswith("vlm_edge.")}
    return frozenset(found)


def module_file(name: str) -> Path:
    """The file of a module of this package, or of the module that an imported name is in."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    places = (place for each in (path, *path.parents) for place in (each.with_suffix(".py"), each / "__init__.py"))
    return next(place for place in places if place.is_file())


def layer_of(file: Path) -> str:
    layer = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "backends (compress)" if layer == "backends" and file.stem not in ON_DEVICE else layer


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_down(file: Path) -> None:
    layer = layer_of(file)
    assert layer in ALLOWED, f"{file}: add the layer {layer} to the table, and to the design"
    upward = {layer_of(each) for each in imported_files(file)} - ALLOWED[layer] - ANYONE - {layer}
    assert not upward, f"{file.relative_to(PACKAGE)} imports {sorted(upward)}, which {layer} must not know"


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter({file: imported_files(file) - {file} for file in FILES}).prepare()  # an error names the circle


@pytest.mark.parametrize("module", ["vlm_edge.api", "vlm_edge.stages", "vlm_edge.cli.main", "vlm_edge.runtime"])
def test_front_doors_import_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    heavy = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert heavy == []


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement, and not before."""
    script = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_else() -> None:
    assert loaded_by("import vlm_edge") - set(sys.stdlib_module_names) == {"vlm_edge"}


def test_every_name_of_the_python_api_is_there_and_what_runs_on_a_device_loads_no_compressor() -> None:
    assert [name for name in vlm_edge.__all__ if getattr(vlm_edge, name).__name__ != name] == []
    assert set(vlm_edge.__all__) <= set(dir(vlm_edge))
    names = set(vlm_edge.__all__) & set(runtime.__all__)
    assert names == set(runtime.__all__)
    loaded = loaded_by(f"import vlm_edge; used = [getattr(vlm_edge, name) for name in {sorted(names)}]")
    assert not loaded & set(HEAVY)
    assert loaded_by("import vlm_edge; vlm_edge.VlmEdgeError").isdisjoint({"numpy", "pydantic", *HEAVY})


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_pipelines'"):
        vlm_edge.load_pipelines  # noqa: B018  (reading it is the test)


@pytest.mark.parametrize(
    "file", [file for file in FILES if layer_of(file) == "backends"], ids=lambda file: file.parent.name
)
def test_what_a_device_needs_of_a_backend_imports_no_compressor(file: Path) -> None:
    module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    own = {file.parent.name}
    assert loaded_by(f"import {module}").isdisjoint({*HEAVY, "onnx_ir"} - own)
