"""The table of backends: what a target may ask of an engine, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_edge.api import find_target
from vlm_edge.backends import backends
from vlm_edge.errors import RecipeError


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("engine: opnvino", "targets/box.yaml: engine: engine 'opnvino' is unknown; did you mean 'openvino'?"),
        ("engine: openvino\nisa: cuda", "targets/box.yaml: isa: openvino has no instruction set 'cuda'; known: "),
        ("engine: tensorrt\nisa: x86-vnn", "targets/box.yaml: isa: tensorrt has no instruction set 'x86-vnn'; "),
    ],
)
def test_a_target_that_no_backend_serves_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, fault: str
) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "box.yaml").write_text(f"name: box\n{line}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as error:
        find_target("box")
    assert error.value.faults[0].startswith(fault)


@pytest.mark.parametrize("name", backends())
def test_every_instruction_set_of_a_backend_is_a_target_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "targets").mkdir()
    monkeypatch.chdir(tmp_path)
    for isa in ("auto", *backends()[name].isas):
        (tmp_path / "targets" / "box.yaml").write_text(f"name: box\nengine: {name}\nisa: {isa}\n")
        only = backends()[name].isas if len(backends()[name].isas) == 1 else ()
        assert (find_target("box").engine, find_target("box").isa) == (name, *(only or (isa,)))
