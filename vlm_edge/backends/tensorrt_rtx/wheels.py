"""Find and load TensorRT for RTX: NVIDIA's builder, ONNX parser and Python bindings, which two wheels hold.

``tensorrt-rtx-cu12-bindings`` asks for ``libtensorrt_rtx.so.1`` and ``libtensorrt_onnxparser_rtx.so.1`` by these names
and ships neither. onnxruntime's plugin has both, under names that end in their full version: they are loaded by path
before the bindings are imported, and the loader then finds them by the names that they carry inside.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_edge.errors import VlmEdgeError

PRODUCT = "TensorRT-RTX"
LIBRARIES_WHEEL, LIBRARIES_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu12", "onnxruntime_ep_nv_tensorrt_rtx"
BINDINGS_WHEEL, BINDINGS_MODULE = "tensorrt-rtx-cu12-bindings", "tensorrt_rtx_bindings"
LIBRARIES = ("libtensorrt_rtx.so.", "libtensorrt_onnxparser_rtx.so.")
"""Beginnings of the files' names; a version follows."""
INSTALL = "pip install 'vlm-edge[tensorrt-rtx]'"


def bindings() -> Any:
    """The bindings' module, its libraries loaded. It builds plans on any x86-64 Linux; running one needs a driver.

    Raises:
        VlmEdgeError: the platform has no wheels, one is missing, they are of two versions, or can't be loaded.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise VlmEdgeError(
            f"TensorRT-RTX: NVIDIA's wheels are for x86-64 Linux, this is {platform.machine()} {sys.platform}",
            "build on an x86-64 Linux machine; a Jetson takes `engine: tensorrt`",
        )
    libraries, module = _wheel(LIBRARIES_WHEEL), _wheel(BINDINGS_WHEEL)
    wanted = ".".join(module.version.split(".")[:3])
    for name in LIBRARIES:
        held = {each.name.removeprefix(name): each for each in _folder(libraries).glob(f"{name}*")}
        if wanted not in held:
            raise VlmEdgeError(
                f"TensorRT-RTX: {BINDINGS_WHEEL} is {module.version}, but {LIBRARIES_WHEEL} {libraries.version} holds "
                f"{name}* of {', '.join(held) or 'no version'}",
                INSTALL,
            )
        _loaded(held[wanted])
    try:
        return importlib.import_module(BINDINGS_MODULE)
    except ImportError as error:
        raise VlmEdgeError(f"TensorRT-RTX: {BINDINGS_MODULE} {module.version} can't be loaded: {error}") from error


def builder_missing() -> str | None:
    """The reason why plans can't be built on this machine, or None."""
    try:
        bindings()
    except VlmEdgeError as error:
        return f"{error.message}; {error.hint}" if error.hint else error.message
    return None


def _wheel(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise VlmEdgeError(f"TensorRT-RTX: the package {name} is not installed", INSTALL) from None


def _folder(libraries: metadata.Distribution) -> Path:
    return Path(str(libraries.locate_file(LIBRARIES_PACKAGE)))


def _loaded(path: Path) -> Any:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise VlmEdgeError(f"TensorRT-RTX: {path} can't be loaded: {error}", INSTALL) from error
