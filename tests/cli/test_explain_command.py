"""``vlm-edge explain`` as a user sees it."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import planted_int8 as planted
import pytest
from click.testing import CliRunner
from tiny_graphs import write_vqa

from vlm_edge.cli.explain import finding_title, headline, host_lines, state_lines
from vlm_edge.cli.main import main
from vlm_edge.explain.causes import CAUSES
from vlm_edge.explain.facts import NAMES_SHOWN

X86 = platform.machine().lower() in ("x86_64", "amd64")


def invoke(*arguments):
    return CliRunner().invoke(main, ["explain", *map(str, arguments)], env={"COLUMNS": "100"})


@pytest.mark.skipif(not X86, reason="onnxruntime fuses s8 data on ARM")
def test_a_person_reads_cause_nodes_share_and_next_step(tmp_path):
    result = invoke(planted.write(planted.gemm_blocked(), tmp_path / "slow.onnx"), "--runs", 2, "--threads", 1)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any(line.startswith("slow: slow.onnx, p50 ") for line in lines)
    assert "  in float: 3 Gemm (gemm-fusion)" in lines
    title = next(line for line in lines if "[gemm-fusion]" in line)
    assert "1. MatMul + Add became Gemm before Q/DQ fusion looked" in title
    assert "9 nodes, about" in result.stdout
    assert "nodes: fc0/MatMulAddFusion, fc1/MatMulAddFusion" in result.stdout
    words = " ".join(result.stdout.split())
    assert "next: `vlm-edge quantize` writes such layers as MatMulIntegerToFloat" in words
    assert max(map(len, lines)) <= 100


def test_a_graph_without_faults_says_so(tmp_path):
    result = invoke(planted.write(planted.around_products("gelu"), tmp_path / "fast.onnx"), "--no-time")
    assert result.exit_code == 0
    assert "no known cause makes this graph slow" in result.stdout
    assert "fast.onnx, not timed" in result.stdout


def test_json_is_one_document_on_stdout(tmp_path):
    write_vqa(tmp_path)
    result = invoke(tmp_path, "--json", "--no-time", "--component", "decoder")
    assert result.exit_code == 0
    assert list(json.loads(result.stdout)["components"]) == ["decoder"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing.onnx"], 2, "does not exist"),
        (["GRAPH", "--dim", "batch"], 2, "not of the form NAME=SIZE"),
        (["GRAPH", "--dim", "batch=0"], 2, "not of the form NAME=SIZE"),
        (["GRAPH", "--dim", "rows=2"], 1, "hint: free dimensions: batch"),
        (["GRAPH", "--component", "decoder"], 1, "hint: give --inputs for a graph"),
    ],
)
def test_mistakes(tmp_path, arguments, code, words):
    path = planted.write(planted.float_chain(), tmp_path / "g.onnx")
    result = invoke(*(path if argument == "GRAPH" else argument for argument in arguments))
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stdout == ""


def test_a_free_dimension_is_set(tmp_path):
    path = planted.write(planted.float_chain(), tmp_path / "g.onnx")
    result = invoke(path, "--dim", "batch=3", "--runs", 1, "--json")
    assert json.loads(result.stdout)["components"]["g"]["inputs"]["x"] == [3, planted.ROWS, planted.WIDTH]


def test_the_words():
    host = {"cpu": None, "machine": "riscv64", "isa": [], "lacks": [{"name": "VNNI", "means": "slower"}]}
    assert list(host_lines(host)) == ["riscv64: no instruction sets that matter to INT8", "lacks VNNI: slower"]
    timed = {"file": "g.onnx", "p50_ms": 12.345, "runs": 3, "threads": 2, "fed": "noise", "inputs": {"a": [1, 2]}}
    assert headline(timed) == "g.onnx, p50 12.3 ms (3 runs, 2 threads, noise: a 1x2)"
    state = {
        "p50_ms": 10.0,
        "kernels_ms": 2.0,
        "integer": {},
        "float": [],
        "quantize_dequantize": {},
        "weights_dequantized": {"count": 0, "elements": 0},
    }
    assert next(state_lines(state)).startswith("its operators take 2 ms: threads wait")
    assert not any("operators take" in line for line in state_lines(state | {"kernels_ms": 9.0}))
    finding = {"title": "T", "cause": "c", "nodes": 1, "share": 0.001, "time_share": 0.2, "counted_in": {}}
    assert finding_title(finding) == "T [c]: 1 node, under 1% of the time"
    assert finding_title(finding | {"share": 0.25, "nodes": 2}) == "T [c]: 2 nodes, about 25% of the time"
    follows = finding | {"counted_in": {"a": 1, "b": 2}, "nodes": 3}
    assert finding_title(follows) == "T [c]: 3 nodes, 20% of the time; 3 count under a, b"
    assert finding_title(finding | {"share": None, "time_share": None}) == "T [c]: 1 node"


def test_the_page_lists_every_cause():
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    for cause in CAUSES:
        assert f"| `{cause.name}` | {cause.title} |" in page
    assert f"first {NAMES_SHOWN} of a finding" in page
