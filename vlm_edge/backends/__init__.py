"""The table of backends: one row an engine. Nothing of an engine is imported before it is used.

A device needs this module, ``base``, ``checks`` and its engine's ``engine`` module. Those beside them lower,
compile and explain, and need the extra ``compress``. An installed package adds a backend by an entry point:
docs/writing-a-backend.md.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_edge.errors import VlmEdgeError
from vlm_edge.names import near

if TYPE_CHECKING:
    from vlm_edge.backends.base import Engine, EngineClass
    from vlm_edge.backends.checks import Option
    from vlm_edge.processing.manifest import Component

ENTRY_POINTS = "vlm_edge.backends"
"""Group of the entry points by which installed packages add backends: ``NAME = "module:SPEC"``."""
REFERENCE = "onnxruntime"
"""The engine that stages calibrate with and check results against; it also runs graphs that were not compiled."""


@dataclass(frozen=True)
class BackendSpec:
    """One row of the table. ``engine``, ``compile``, ``lowering`` and ``explain`` are ``module:attribute``.

    ``engine`` is a class as :class:`vlm_edge.backends.base.EngineClass`; its module imports neither onnx nor torch.
    ``compile`` takes a :class:`vlm_edge.backends.compiling.CompileJob`, writes one component's files and returns its
    row in the manifest and facts. ``lowering`` is a subclass of :class:`vlm_edge.backends.lowering.Lowering`; without
    one nothing is quantized for the engine. ``explain`` takes a :class:`vlm_edge.backends.explaining.ExplainJob` and
    returns JSON values; without one, ``explain_hint`` is the next step.

    ``files`` are the suffixes of compiled components. ``packages`` are the distributions that the engine needs and
    whose versions change its results and times; ``extra`` is the extra of vlm-edge that installs them. ``schemes`` are
    those of ``quantize`` beside ``none``, ``dtypes`` those of exported graphs, ``int8_dtypes`` of those that may be
    quantized. ``isas`` are the instruction sets that graphs are lowered for; ``auto`` is the host's, or the first where
    the host's is not among them. ``capabilities`` are the compute capabilities of GPUs that a target may name.
    ``options`` are written into every manifest. An engine
    ``on_gpu`` is not pinned to CPUs while it is timed. ``builder``, another ``module:attribute``, is called for why
    nothing can be compiled on this machine (None: it can); without one, an engine is compiled where it runs. ``kit``, a
    subclass of :class:`vlm_edge.backends.kits.KitForm`, makes ``compile`` write a build kit on such a machine.
    """

    name: str
    engine: str
    compile: str
    lowering: str = ""
    explain: str = ""
    explain_hint: str = "explain the folder of graphs that it was compiled from"
    files: tuple[str, ...] = (".onnx",)
    packages: tuple[str, ...] = ()
    extra: str = ""
    schemes: frozenset[str] = frozenset({"int8", "int8-weights", "int4-weights"})
    dtypes: tuple[str, ...] = ("float32", "float16")
    int8_dtypes: tuple[str, ...] = ("float32",)
    isas: tuple[str, ...] = ("x86-vnni", "x86", "arm")
    options: Mapping[str, Option] = field(default_factory=dict)
    on_gpu: bool = False
    capabilities: tuple[str, ...] = ()
    builder: str = ""
    kit: str = ""


_NVIDIA = ("float32", "float16", "bfloat16")
_ROWS: tuple[BackendSpec, ...] = (
    BackendSpec(
        name="onnxruntime",
        engine="vlm_edge.backends.onnxruntime.engine:OnnxRuntimeEngine",
        compile="vlm_edge.backends.onnxruntime.compile:compile_component",
        lowering="vlm_edge.backends.onnxruntime.lowering:OnnxRuntimeLowering",
        explain="vlm_edge.backends.onnxruntime.explain:explain_component",
        packages=("onnxruntime", "onnxruntime-gpu"),
        schemes=frozenset({"int8", "int8-dynamic", "int8-weights", "int4-weights", "float16-weights"}),
        # the graph is optimized when it is loaded: doing it beforehand would write int8 weights out as float32
        options={"graph_optimization": "all", "spinning": "during_run"},
    ),
    BackendSpec(
        name="openvino",
        engine="vlm_edge.backends.openvino.engine:OpenVinoEngine",
        compile="vlm_edge.backends.openvino.compile:compile_component",
        lowering="vlm_edge.backends.openvino.lowering:OpenVinoLowering",
        explain="vlm_edge.backends.openvino.explain:explain_component",
        files=(".xml",),
        packages=("openvino",),
        schemes=frozenset({"int8", "int8-weights", "int4-weights", "float16-weights"}),
        extra="openvino",
    ),
    BackendSpec(
        name="tensorrt",
        engine="vlm_edge.backends.tensorrt.engine:TensorRtEngine",
        compile="vlm_edge.backends.tensorrt.compile:compile_component",
        lowering="vlm_edge.backends.tensorrt.lowering:TensorRtLowering",
        explain_hint="explain the folder of graphs that it was compiled from; on the device, trtexec --dumpLayerInfo "
        "--dumpProfile",
        files=(".plan", ".engine"),
        packages=("tensorrt",),
        extra="tensorrt",
        dtypes=_NVIDIA,
        int8_dtypes=_NVIDIA,
        isas=("cuda",),
        on_gpu=True,
        kit="vlm_edge.backends.tensorrt.kit:TensorRtKit",
    ),
    BackendSpec(
        name="tensorrt-rtx",
        engine="vlm_edge.backends.tensorrt_rtx.engine:TensorRtxEngine",
        compile="vlm_edge.backends.tensorrt_rtx.compile:compile_component",
        lowering="vlm_edge.backends.tensorrt.lowering:TensorRtLowering",
        explain="vlm_edge.backends.tensorrt_rtx.explain:explain_component",
        files=(".plan",),
        packages=("tensorrt-rtx-cu12-bindings", "onnxruntime-ep-nv-tensorrt-rtx-cu12"),
        extra="tensorrt-rtx",
        dtypes=_NVIDIA,
        int8_dtypes=_NVIDIA,
        isas=("cuda",),
        on_gpu=True,
        builder="vlm_edge.backends.tensorrt_rtx.wheels:builder_missing",
        kit="vlm_edge.backends.tensorrt_rtx.kit:TensorRtxKit",
        capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    ),
)
BACKENDS: dict[str, BackendSpec] = {row.name: row for row in _ROWS}
"""Backends that come with the package, by name."""


@functools.cache
def installed() -> dict[str, EntryPoint]:
    """The entry points of installed packages by name."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name in {**BACKENDS, **found}:
            raise VlmEdgeError(
                f"the entry point {entry.name} = {entry.value!r} of {ENTRY_POINTS}: there is a backend of that name",
                "uninstall the package, or let it take another name",
            )
        found[entry.name] = entry
    return found


def backend(name: str) -> BackendSpec:
    """The row of an engine: one that comes with the package, or an installed package's.

    Raises:
        VlmEdgeError: there is none of that name, or the package that adds it is broken.
    """
    if name in BACKENDS:
        return BACKENDS[name]
    if name not in installed():
        raise VlmEdgeError(f"engine {name!r} is unknown", near(name, [*BACKENDS, *installed()]))
    entry = installed()[name]
    try:
        spec: Any = entry.load()
    except (ImportError, AttributeError) as error:
        raise VlmEdgeError(
            f"engine {name}: {entry.value} can't be imported: {error}", "mend or uninstall the package that adds it"
        ) from error
    if not isinstance(spec, BackendSpec) or spec.name != name:
        raise VlmEdgeError(f"engine {name}: {entry.value} is no BackendSpec of that name", "ask the package's author")
    return spec


def backends() -> dict[str, BackendSpec]:
    """All rows by name: those of the package, then those of installed packages."""
    return BACKENDS | {name: backend(name) for name in installed()}


def resolve(attribute: str) -> Any:
    """The object that ``module:attribute`` names, its module imported now."""
    return pkgutil.resolve_name(attribute)


def load_engine(
    name: str,
    model_path: Path,
    component: Component,
    threads: int = 1,
    options: Mapping[str, Option] | None = None,
) -> Engine:
    """Load one component's file into an engine.

    Args:
        name: the engine's in the table.
        model_path: one of the engine's ``files``; onnxruntime and openvino take any ONNX file.
        component: its inputs and outputs, from the manifest.
        threads: intra-op threads; engines on a GPU ignore it.
        options: the engine's own, as the compile stage wrote them into the manifest; the component's replace them.

    Raises:
        VlmEdgeError: the engine is unknown or can't run here, the file is missing or corrupt, an option is unknown.
    """
    require_engine(name)
    if not model_path.is_file():
        raise VlmEdgeError(f"{model_path}: no such model file", "export or compile the model again")
    given = {**(options or {}), **component.options}
    return _engine_class(name)(model_path, component, threads=threads, options=given)


def compile_available(name: str) -> str | None:
    """None when the engine can be compiled on this machine, else the reason why not, with the next step.

    Raises:
        VlmEdgeError: there is no engine of that name.
    """
    builder = backend(name).builder
    reason: str | None = resolve(builder)() if builder else engine_available(name)
    return reason


def builds_on_device(name: str) -> bool:
    """True of an engine that has build kits and is compiled on the device alone, so that other machines write a kit."""
    return bool(backend(name).kit) and not backend(name).builder


def require_engine(name: str) -> None:
    """Nothing, if the engine can run on this machine.

    Raises:
        VlmEdgeError: it can't: the message says what is missing.
    """
    reason = engine_available(name)
    if reason is not None:
        raise VlmEdgeError(f"engine {name}: {reason}", "see `vlm-edge doctor` for what can run on this machine")


def engine_version(name: str) -> str:
    """The version of an engine that can be compiled or run here."""
    return _engine_class(name).version()


def engine_available(name: str) -> str | None:
    """None when the engine can run on this machine, else the reason why not, with the next step.

    Raises:
        VlmEdgeError: there is no engine of that name.
    """
    return _engine_class(name).unavailable()


def _engine_class(name: str) -> EngineClass:
    found: EngineClass = resolve(backend(name).engine)
    return found
