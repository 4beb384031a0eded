"""The build kit of TensorRT: profiles, scripts for trtexec and Python, and the building of plans on the device."""

from __future__ import annotations

import shlex
from pathlib import Path

from vlm_edge.backends.kits import KIT_NAME, SUMS_NAME, Kit, KitForm, Profile
from vlm_edge.backends.tensorrt.build import plan_of
from vlm_edge.backends.tensorrt.engine import require_tensorrt
from vlm_edge.backends.tensorrt.profiles import dimension_ranges, profile_shapes
from vlm_edge.digests import own_cache
from vlm_edge.processing.manifest import Component, PipelineManifest

_SHELL = f"""#!/bin/sh
# Build the plans with trtexec, on the device that runs them. `vlm-edge compile . --on-device -o RESULT` also checks
# them against the golden runs, and measures.
set -eu
cd "$(dirname "$0")"
sha256sum --check --quiet {SUMS_NAME}
trtexec="${{TRTEXEC:-/usr/src/tensorrt/bin/trtexec}}"
typed=$("$trtexec" --help | grep -o -m 1 -e --stronglyTyped || true)  # TensorRT 11 has no other networks
"""
_PYTHON = f'''"""Build the plans with TensorRT's Python API, on the device that runs them: python3 build.py"""

import json
from pathlib import Path

import tensorrt as trt

here = Path(__file__).parent
kit = json.loads((here / "{KIT_NAME}").read_text())
rows = json.loads((here / "manifest.json").read_text())["components"]
cache = here / kit["timing_cache"]
for name, part in kit["components"].items():
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    graph = here / rows[name]["file"]
    if not parser.parse_from_file(str(graph)):
        raise SystemExit("\\n".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for tensor, shapes in part["profile"].items():
        profile.set_shape(tensor, *shapes)
    if part["profile"]:
        config.add_optimization_profile(profile)
    config.set_timing_cache(config.create_timing_cache(cache.read_bytes() if cache.exists() else b""), True)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SystemExit(f"{{graph}}: see TensorRT's log above")
    graph.with_suffix(".plan").write_bytes(plan)
    cache.write_bytes(config.get_timing_cache().serialize())
'''


class TensorRtKit(KitForm):
    """Strongly typed ONNX, a profile for each component, and two scripts."""

    def check(self, graph: Path) -> None:
        from vlm_edge.backends.tensorrt.rules import require_tensorrt_rules

        require_tensorrt_rules(graph)

    def profile(self, component: Component, manifest: PipelineManifest, max_batch: int) -> Profile:
        shapes = profile_shapes(component, dimension_ranges(manifest, max_batch))
        return {name: (smallest, usual, largest) for name, (smallest, usual, largest) in shapes.items()}

    def scripts(self, kit: Kit, manifest: PipelineManifest) -> dict[str, str]:
        lines = []
        for name, part in kit.components.items():
            graph = Path(manifest.components[name].file)
            command = ["--skipInference", f"--onnx={graph}", f"--saveEngine={graph.with_suffix('.plan')}"]
            command.append(f"--timingCacheFile={kit.timing_cache}")
            for place, option in enumerate(("minShapes", "optShapes", "maxShapes") if part.profile else ()):
                shapes = (f"{tensor}:{'x'.join(map(str, each[place]))}" for tensor, each in part.profile.items())
                command.append(f"--{option}={','.join(shapes)}")
            lines.append(f'"$trtexec" $typed {shlex.join(command)}\n')
        return {"build.sh": _SHELL + "".join(lines), "build.py": _PYTHON}

    def build(self, graph: Path, component: Component, profile: Profile, out: Path) -> Component:
        trt, folder = require_tensorrt(), own_cache("timing")
        cache = folder / f"tensorrt-{trt.__version__}.cache" if folder else None
        path = out / f"{graph.stem}.plan"
        path.write_bytes(plan_of(trt, graph, profile, timing_cache=cache))
        return component.model_copy(update={"file": path.name})
