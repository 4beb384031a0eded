"""Device memory and streams through libcudart's C API, so that a device needs no torch and no further package.

CUDA Runtime API reference, sections "Memory Management" and "Stream Management".
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import sys
from pathlib import Path
from typing import Any

from vlm_edge.backends.base import Array
from vlm_edge.errors import VlmEdgeError

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
"""cudaMemcpyKind."""
INSUFFICIENT_DRIVER = 35
"""cudaErrorInsufficientDriver: there is no driver, or it is older than the runtime."""

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaDriverGetVersion": (ctypes.POINTER(ctypes.c_int),),
    "cudaGetDeviceCount": (ctypes.POINTER(ctypes.c_int),),
    "cudaMalloc": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t),
    "cudaFree": (ctypes.c_void_p,),
    "cudaMemcpyAsync": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p),
    "cudaStreamCreate": (ctypes.POINTER(ctypes.c_void_p),),
    "cudaStreamSynchronize": (ctypes.c_void_p,),
}


@functools.cache
def load_cudart() -> Any | None:
    """libcudart with typed functions, from the loader's path, the toolkit or NVIDIA's wheels; None if there is none."""
    wheels = ("nvidia/*/lib/libcudart.so.*", "onnxruntime_ep_nv_tensorrt_rtx/libcudart.so.*")
    packaged = [str(found) for entry in sys.path for wheel in wheels for found in Path(entry).glob(wheel)]
    toolkit = ["libcudart.so.13", "libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so"]
    for name in [ctypes.util.find_library("cudart"), *toolkit, *packaged]:
        if name is None:
            continue
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for function, arguments in _SIGNATURES.items():
            getattr(library, function).argtypes = arguments
        library.cudaGetErrorString.argtypes = (ctypes.c_int,)
        library.cudaGetErrorString.restype = ctypes.c_char_p
        return library
    return None


def driver_missing() -> str | None:
    """The reason why nothing can be run on a GPU of this machine, or None."""
    cudart, driver, count = load_cudart(), ctypes.c_int(0), ctypes.c_int(0)
    if cudart is None:
        return "CUDA's runtime (libcudart) can't be loaded"
    cudart.cudaDriverGetVersion(ctypes.byref(driver))
    code = cudart.cudaGetDeviceCount(ctypes.byref(count))
    if not driver.value:
        return "no NVIDIA driver is installed"
    if code == INSUFFICIENT_DRIVER:
        return f"the NVIDIA driver is for CUDA {driver.value // 1000}.{driver.value % 1000 // 10}, which is too old"
    return None if code == 0 and count.value else f"no GPU can be used (CUDA error {code})"


class Stream:
    """One CUDA stream, and buffers that grow to what was asked of them."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._buffers: dict[str, tuple[int, int]] = {}
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(handle))
        self.handle = handle.value or 0

    def buffer(self, name: str, size_bytes: int) -> int:
        """Address of ``name``'s device buffer, at least ``size_bytes`` and never null, as TensorRT wants it."""
        size_bytes = max(size_bytes, 1)
        address, capacity = self._buffers.get(name, (0, 0))
        if size_bytes > capacity:
            self.synchronize()
            if address:
                self._call("cudaFree", address)
            pointer = ctypes.c_void_p()
            self._call("cudaMalloc", ctypes.byref(pointer), size_bytes)
            address = pointer.value or 0
            self._buffers[name] = (address, size_bytes)
        return address

    def upload(self, array: Array, address: int) -> None:
        """Copy a C-contiguous array to the device; it must live until :meth:`synchronize`."""
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, HOST_TO_DEVICE, self.handle)

    def download(self, address: int, array: Array) -> None:
        """Copy from the device into a C-contiguous array, complete after :meth:`synchronize`."""
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, DEVICE_TO_HOST, self.handle)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self._call("cudaStreamSynchronize", self.handle)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            text = self._library.cudaGetErrorString(code).decode()
            raise VlmEdgeError(f"CUDA: {function} failed: {text} ({code})", "free GPU memory, or check the driver")
