"""Memory and time of calibrating ViT-B/16 at 224 px with percentile ranges, against NNCF's own; nothing is downloaded.

Each runs in a process of its own: ours with 64 images, ours with --images, NNCF with --images (nncf.quantize with its
percentile estimator and its default corrections). Weights and images are random: memory and time don't look at them.
Exits with 1 when a bar is missed: peak resident memory at most 3 GB and at most 5% more than with 64 images, and no
more time than NNCF. About half an hour with 512 images on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FEW = 64
MOST_BYTES = 3e9
MOST_GROWTH = 1.05
PERCENTILE = 99.99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--engine", default="onnxruntime", choices=["onnxruntime", "openvino", "tensorrt"])
    parser.add_argument("--without-nncf", action="store_true", help="leave NNCF's run out, and its bar undecided")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--worker", nargs=4, metavar=("WHAT", "GRAPH", "IMAGES", "ENGINE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        what, graph, images, engine = arguments.worker
        print(json.dumps(worker(what, Path(graph), int(images), engine)))
        return
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "vit_b_16.onnx"
        in_own_process("export", graph, 0, arguments.engine)
        asked = [("vlm-edge", FEW), ("vlm-edge", arguments.images)]
        asked += [] if arguments.without_nncf else [("NNCF", arguments.images)]
        rows = []
        for what, images in asked:
            print(f"{what}: {images} images", file=sys.stderr)
            rows.append({"name": what, "images": images, **in_own_process(what, graph, images, arguments.engine)})
            print(json.dumps(rows[-1]), file=sys.stderr)
    few, many = rows[:2]
    bars = {
        "peak_bytes": many["peak_bytes"] <= MOST_BYTES,
        "growth": many["peak_bytes"] <= MOST_GROWTH * few["peak_bytes"],
        "time": None if arguments.without_nncf else many["wall_s"] <= rows[2]["wall_s"],
    }
    if arguments.json:
        print(json.dumps({"model": "vit-b-16", "engine": arguments.engine, "rows": rows, "bars": bars}))
    else:
        print_table(rows, bars)
    sys.exit(any(met is False for met in bars.values()))


def in_own_process(what: str, graph: Path, images: int, engine: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", what, str(graph), str(images), engine]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def worker(what: str, graph: Path, images: int, engine: str) -> dict[str, Any]:
    if what == "export":
        export(graph)
        return {}
    from vlm_edge.graphs.files import load_graph

    with tempfile.TemporaryDirectory(dir=graph.parent) as folder:
        feeds = on_disk(Path(folder) / "images", images)
        model = load_graph(graph)
        started = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            if what == "NNCF":
                import onnx

                by_nncf(onnx.load(graph), feeds)
            else:
                by_vlm_edge(model, feeds, engine)
    return {"wall_s": round(time.monotonic() - started, 1), "peak_bytes": peak_bytes()}


def on_disk(path: Path, images: int) -> Any:
    """What the quantize stage captures: one feed after another in a file."""
    from vlm_edge.stages.quantize_capture import ArrayFile

    generator = np.random.default_rng(0)
    feeds = ArrayFile(path)
    for _ in range(images):
        feeds.append({"pixel_values": generator.normal(size=(1, 3, 224, 224)).astype(np.float32)})
    return feeds


def by_vlm_edge(model: Any, feeds: Any, engine: str) -> None:
    from vlm_edge.backends.lowering import host_isa, lowering_of
    from vlm_edge.quantization.static import StaticSettings
    from vlm_edge.stages.quantize import quantize_graph

    form = lowering_of(engine, "cuda" if engine == "tensorrt" else host_isa())
    quantize_graph(model, "int8", feeds, form, settings=StaticSettings("percentile", PERCENTILE))


def by_nncf(model: Any, feeds: Any) -> None:
    os.environ.setdefault("NNCF_CI", "1")
    import logging

    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    nncf.set_log_level(logging.ERROR)
    side = StatisticsCollectorParameters(
        StatisticsType.QUANTILE, AggregatorType.MEAN, quantile_outlier_prob=1 - PERCENTILE / 100
    )
    nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParameters(side, side)
        ),
    )


def export(path: Path) -> None:
    """ViT-B/16 without its head; weights that keep the activations' size through the layers."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False).eval()
    for value in model.parameters():
        if value.ndim == 2:
            torch.nn.init.normal_(value, std=value.shape[1] ** -0.5)

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.model(pixel_values).last_hidden_state
            return states

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            States(),
            (torch.zeros(2, 3, 224, 224),),
            str(path),
            dynamo=True,
            opset_version=20,
            external_data=False,
            input_names=["pixel_values"],
            output_names=["states"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            verbose=False,
        )


def peak_bytes() -> int:
    """Largest resident memory of this process (Linux)."""
    lines: Iterator[str] = iter(Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def print_table(rows: list[dict[str, Any]], bars: dict[str, bool | None]) -> None:
    print(f"{'':<10} {'images':>6} {'peak GB':>8} {'wall s':>8}")
    for row in rows:
        print(f"{row['name']:<10} {row['images']:>6} {row['peak_bytes'] / 1e9:>8.2f} {row['wall_s']:>8.1f}")
    shown = {True: "met", False: "MISSED", None: "not measured"}
    print(
        f"at most 3 GB: {shown[bars['peak_bytes']]}; at most 5% more than with {FEW} images: {shown[bars['growth']]}; "
        f"no slower than NNCF: {shown[bars['time']]}"
    )


if __name__ == "__main__":
    main()
