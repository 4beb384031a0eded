"""The stage in docs/writing-a-stage.md is run as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlm_edge import api
from vlm_edge.toolbox import default_toolbox

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-stage.md"


@pytest.fixture
def module() -> Iterator[ModuleType]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("stage_of_the_page")
    sys.modules[module.__name__] = module
    exec(compile(code, PAGE.name, "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


def test_the_page_s_stage_rounds_a_checkpoint(module: Any, tiny_blip: Path, tmp_path: Path) -> None:
    import torch

    from vlm_edge.families.loading import load_checkpoint

    toolbox = replace(default_toolbox(), stages={module.SPEC.name: module.SPEC})
    facts = api.run_stage("round", {"bits": 8}, tiny_blip, tmp_path / "out", toolbox=toolbox)
    assert 0 < facts["largest_relative_error"] <= 2.0**-8
    before, after = load_checkpoint(tiny_blip).model, load_checkpoint(tmp_path / "out").model
    for (name, was), now in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        if was.is_floating_point():
            mantissa = torch.frexp(now).mantissa * 2**8
            assert torch.equal(mantissa, mantissa.round()), name
            assert torch.allclose(was, now, rtol=2.0**-8, atol=0), name


def test_the_page_s_stage_takes_no_other_settings(module: Any) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        module.RoundConfig(bits=0)
    with pytest.raises(ValidationError):
        module.RoundConfig(bit=4)
