"""Bytes and parameters of a folder, and what a host's fingerprint holds."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
from sealed import seal_again

from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation import host
from vlm_edge.evaluation.footprint import footprint, parameters
from vlm_edge.evaluation.host import host_fingerprint, host_record
from vlm_edge.machine import Processor


def test_footprint_counts_bytes_and_weights(bench):
    (bench.other / "notes.txt").write_bytes(b"x" * 1000)
    sizes = {
        folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in (bench.engine, bench.other)
    }
    found = {m.metric: m for m in footprint(bench.engine, bench.other)}
    assert found["size_bytes"].value == sizes[bench.other]
    assert found["size_ratio"].value == pytest.approx(sizes[bench.other] / sizes[bench.engine])
    shapes = [(12, 3), (3, 6), (3, 6), (12, 6), (6, 12)]  # of the graphs' weights
    assert found["parameters"].value == sum(math.prod(shape) for shape in shapes)
    assert all(m.low == m.value == m.high for m in found.values())


def test_a_corrupt_graph_is_named(bench):
    (bench.engine / "decoder.onnx").write_bytes(b"\xff no graph")
    seal_again(bench.engine)
    with pytest.raises(VlmEdgeError, match=r"decoder\.onnx: not an ONNX file"):
        parameters(bench.engine)


def test_without_onnx_parameters_are_left_out(bench, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert [m.metric for m in footprint(bench.engine, bench.engine)] == ["size_bytes", "size_ratio"]


def test_the_record_is_json_and_the_fingerprint_ignores_what_passes(monkeypatch):
    record, fingerprint = host_record(), host_fingerprint()
    assert json.loads(json.dumps(record)) == record
    assert record["cores"] == len(os.sched_getaffinity(0))
    assert record["packages"]["onnxruntime"]
    assert len(fingerprint) == 16
    for key, value in (("load_average", [9, 9, 9]), ("governor", "powersave"), ("release", "0"), ("memory_mb", 1)):
        monkeypatch.setattr(host, "host_record", lambda key=key, value=value: {**record, key: value})
        assert host_fingerprint() == fingerprint
    for key, value in (("cpu", "another"), ("isa", []), ("cores", 99), ("packages", {"onnxruntime": "0"})):
        monkeypatch.setattr(host, "host_record", lambda key=key, value=value: {**record, key: value})
        assert host_fingerprint() != fingerprint


def test_the_host_is_told_without_importing_an_engine():
    script = (
        "import sys\nfrom vlm_edge.evaluation.host import host_fingerprint\nhost_fingerprint()\n"
        "print([name for name in ('torch', 'onnxruntime', 'openvino', 'onnx', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("machine", "flags", "isa", "reason"),
    [
        ("x86_64", {"avx512_vnni"}, "x86-vnni", None),
        ("x86_64", {"avx2"}, "x86-vnni", "no VNNI"),
        ("x86_64", {"avx2"}, "x86", None),
        ("x86_64", {"avx_vnni"}, "arm", "this host is x86_64"),
        ("aarch64", {"asimddp"}, "arm", None),
        ("aarch64", {"asimddp"}, "x86", "this host is aarch64"),
        ("aarch64", {"asimddp"}, "auto", None),
    ],
)
def test_a_target_of_another_instruction_set_is_named(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: set[str], isa: str, reason: str | None
) -> None:
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    monkeypatch.setattr("vlm_edge.machine.processor", lambda: Processor("cpu", frozenset(flags)))
    found = host.lacks_isa(isa)
    assert found is None if reason is None else found is not None and reason in found
