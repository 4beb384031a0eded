"""The names in NVIDIA's published Python bindings of TensorRT 10 and 11, which can't run here: tensorrt_names.json.

    python tests/support/tensorrt_names.py WHEEL...   # of tensorrt-cu12-bindings; writes the file

The bindings ask for three libraries of which PyPI has none, but for nine C functions only: with libraries that hold
these and nothing else, they can be imported and read.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
CLASSES = [
    "Builder",
    "ICudaEngine",
    "IBuilderConfig",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "IOptimizationProfile",
    "Logger",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
]
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
FUNCTIONS = [
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
]
READ = """
import json, sys, tensorrt_bindings
public = lambda name: [each for each in dir(getattr(tensorrt_bindings, name)) if not each.startswith("_")]
print(json.dumps({name: public(name) for name in sys.argv[1:]}))
"""


def published() -> dict[str, dict[str, list[str]]]:
    """Version -> class -> its public names."""
    names: dict[str, dict[str, list[str]]] = json.loads(FILE.read_text())
    return names


def names_in(wheel: Path) -> dict[str, list[str]]:
    """Class -> its public names, in a wheel of the bindings for this Python."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zipfile.ZipFile(wheel).extractall(folder)
        (folder / "empty.c").write_text("".join(f"void* {function}(void) {{ return 0; }}\n" for function in FUNCTIONS))
        major = re.findall(r"-(\d+)\.", wheel.name)[0]
        for library in LIBRARIES:
            soname = f"{library}.so.{major}"
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", folder / soname, folder / "empty.c"]
            subprocess.run(command, check=True)
        env = {**os.environ, "LD_LIBRARY_PATH": name, "PYTHONPATH": name}
        run = subprocess.run([sys.executable, "-c", READ, *CLASSES], env=env, check=True, capture_output=True)
    names: dict[str, list[str]] = json.loads(run.stdout)
    return names


if __name__ == "__main__":
    found = {path.name.split("-")[1]: names_in(path) for path in map(Path, sys.argv[1:])}
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows)}" for name, rows in found.items())
    FILE.write_text(f"{{\n{rows}\n}}\n")
