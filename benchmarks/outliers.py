"""What outlier channels do to INT8: the zoo's BLIP on easy-VQA, with 4 channels of its norms scaled by 64.

The scaling is undone in the next weights, so the float model's answers stay. Then come onnxruntime's quantize_static
(min-max ranges, u8 data, s8 weights by channel) and the quantize stage with its defaults, each measured on the test
split. Exits with 1 unless the first fails (it loses more than 0.5 points, the whole 95% interval) and the second
doesn't (its drop's 95% interval ends within 0.5 points).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

MOST_PT = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:blip-easyvqa")
    parser.add_argument("--data", type=Path, default=Path("calibration/easy-vqa.yaml"))
    parser.add_argument("--samples", type=int, default=256, help="calibration samples")
    parser.add_argument("--questions", type=int, help="questions of the test split; default: all")
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--factor", type=float, default=64.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), arguments)
    bars = {"naive fails": rows[1]["drop_pt"]["low"] > MOST_PT, "ours holds": rows[2]["drop_pt"]["high"] <= MOST_PT}
    if arguments.json:
        print(json.dumps({"model": arguments.model, "norms": rows[0]["norms"], "rows": rows, "bars": bars}))
    else:
        print_table(rows)
    sys.exit(not all(bars.values()))


def measured(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from vlm_edge import api
    from vlm_edge.evaluation.accuracy import evaluate

    task = api.find_task(arguments.data)
    graphs = folder / "float"
    api.run_stage("export", {}, arguments.model, graphs)
    norms = inject(graphs, arguments.channels, arguments.factor)
    by_static(graphs, folder / "static", task.data, arguments)
    facts = api.run_stage("quantize", {"samples": arguments.samples}, graphs, folder / "ours", data=task.data)
    outcomes = {}
    for name in ("float", "static", "ours"):
        print(f"answering with {name}", file=sys.stderr)
        outcomes[name] = evaluate(folder / name, task, threads=arguments.threads, limit=arguments.questions)
    schemes = {name: fact["scheme"] for name, fact in facts["components"].items()}
    return [
        row_of("FP32", outcomes["float"], outcomes["float"]) | {"norms": norms},
        row_of("onnxruntime static", outcomes["float"], outcomes["static"]),
        row_of("vlm-edge", outcomes["float"], outcomes["ours"]) | {"schemes": schemes},
    ]


def inject(graphs: Path, channels: int, factor: float) -> int:
    """Give every component's norms outliers, in place; returns how many norms."""
    import onnx
    import onnx_ir as ir
    from _outlier_channels import add_outliers

    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.stages.quantize_attempt import prepare

    total = 0
    for component in read_manifest(graphs).components.values():
        path = graphs / component.file
        model = prepare(ir.from_proto(onnx.load(path)))
        total += add_outliers(model, channels=channels, factor=factor)
        onnx.save(ir.to_proto(model), path)
    return total


def by_static(graphs: Path, out: Path, data: Path, arguments: argparse.Namespace) -> None:
    """Every component as onnxruntime's documentation advises for x86 with VNNI, on the same calibration samples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    from vlm_edge.core.stage import SilentProgress
    from vlm_edge.data import load_dataset
    from vlm_edge.processing.manifest import read_manifest
    from vlm_edge.stages.quantize_capture import capture_inputs

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: Any) -> None:
            self.rows = iter(feeds)

        def get_next(self) -> Any:
            return next(self.rows, None)

    shutil.copytree(graphs, out)
    manifest = read_manifest(graphs)
    dataset = load_dataset(data, "calibration", limit=arguments.samples)
    scratch = out.with_name("captured")
    capture = capture_inputs(graphs, manifest, dataset, scratch, arguments.threads, SilentProgress())
    for name, component in manifest.components.items():
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(
                graphs / component.file,
                out / component.file,
                Reader(capture.components[name].calibration),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
    shutil.rmtree(scratch)


def row_of(name: str, baseline: Any, candidate: Any) -> dict[str, Any]:
    from vlm_edge.evaluation.accuracy import compare

    found = {each.metric: each for each in compare(baseline, candidate)}
    row: dict[str, Any] = {"name": name, "n": len(candidate.ids)}
    for key, metric in (("accuracy", "accuracy"), ("drop_pt", "accuracy_drop_pt")):
        each = found[metric]
        row[key] = {"low": each.low, "value": each.value, "high": each.high}
    return row


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"outliers in {rows[0]['norms']} norms; n = {rows[0]['n']}")
    print(f"{'':<20} {'accuracy':>9} {'drop, pt':>9}   95% interval")
    for row in rows:
        drop = row["drop_pt"]
        print(
            f"{row['name']:<20} {100 * row['accuracy']['value']:>8.2f}% {drop['value']:>9.2f}   "
            f"[{drop['low']:.2f}, {drop['high']:.2f}]   {row.get('schemes', '')}"
        )


if __name__ == "__main__":
    main()
