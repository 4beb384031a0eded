"""docs/ci.md and the reusable workflow: what they show is what there is."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from vlm_edge.cli.ci import EXIT_CODES
from vlm_edge.cli.main import main
from vlm_edge.core.gate import Tolerances

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
FILE = ROOT / ".github" / "workflows" / "vlm-edge-gate.yml"
TEXT = FILE.read_text(encoding="utf-8")


class Loader(yaml.SafeLoader):
    """YAML as GitHub and GitLab read it, where ``on`` is a word."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag != "tag:yaml.org,2002:bool"]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def loaded(text: str) -> Any:
    return yaml.load(text, Loader)


WORKFLOW = loaded(TEXT)
INPUTS: dict[str, dict[str, Any]] = WORKFLOW["on"]["workflow_call"]["inputs"]
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["gate"]["steps"]
FENCES = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_input_is_used_and_every_one_used_is_declared() -> None:
    used = set(re.findall(r"inputs\.([a-z-]+)", TEXT))
    assert used == set(INPUTS)
    for name, spec in INPUTS.items():
        assert spec["description"], name
        assert spec["type"] in ("string", "boolean")
        assert ("default" in spec) != (spec.get("required") == "true")


def test_every_step_that_is_referred_to_is_there() -> None:
    known = {step["id"] for step in STEPS if "id" in step}
    assert set(re.findall(r"steps\.([a-z]+)\.", TEXT)) <= known


@pytest.mark.parametrize("step", [step for step in STEPS if "run" in step], ids=lambda step: step["name"][:20])
def test_a_script_is_valid_and_takes_nothing_from_outside_but_by_its_environment(step: dict[str, Any]) -> None:
    assert "${{" not in step["run"], "an expression in a script is an injection"
    done = subprocess.run(["bash", "-n", "-c", step["run"]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    environment = {*WORKFLOW["jobs"]["gate"]["env"], *step.get("env", {})}
    own = set(re.findall(r"\b([A-Za-z_]+)=", step["run"]))
    runner = {"RUNNER_TEMP", "GITHUB_PATH", "GITHUB_OUTPUT", "GITHUB_REPOSITORY"}
    assert set(re.findall(r"\$\{?([A-Za-z_]+)", step["run"])) <= environment | own | runner


def commands(text: str) -> list[list[str]]:
    """``vlm-edge`` commands of a script or console session, in words."""
    lines = re.findall(r"^(?:\$ |\s*(?:- )?)?(vlm-edge [a-z].*)$", text, flags=re.MULTILINE)
    return [shlex.split(re.split(r" [>|]", line)[0], comments=True)[1:] for line in lines]


SHOWN = [
    *(words for step in STEPS for words in commands(step.get("run", ""))),
    *(words for _, body in FENCES for words in commands(body)),
]


def test_the_workflow_and_the_page_use_commands_that_there_are() -> None:
    assert {words[0] for words in SHOWN} >= {"check", "run", "gate", "report"}
    for command, *arguments in SHOWN:
        shown = CliRunner().invoke(main, [command, "--help"])
        assert shown.exit_code == 0, command
        for option in (argument for argument in arguments if argument.startswith("--")):
            assert option in shown.output, f"{command} has no {option}"


@pytest.mark.parametrize("body", [body for kind, body in FENCES if kind == "yaml"], ids=lambda body: body[:20])
def test_the_page_s_yaml_is_valid(body: str) -> None:
    content = loaded(body)
    if "jobs" in content:
        (job,) = content["jobs"].values()
        assert job["uses"].partition("@")[0].endswith(str(FILE.relative_to(ROOT)))
        assert {"push", "pull_request"} <= set(content["on"])
        content = job
    if "with" in content:
        assert set(content["with"]) <= set(INPUTS)
    else:
        (job,) = content.values()
        assert set(job["allow_failure"]["exit_codes"]) <= set(EXIT_CODES.values()) - {0}
        (report,) = job["artifacts"]["reports"].values()
        assert any(f"--junit {report}" in line for line in job["script"])


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, or of the one whose first cell it is."""
    body = PAGE[PAGE.index(heading) - 1 :]
    table = body[body.index("\n| ") :].strip().split("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


def test_the_table_of_exit_codes_is_whole() -> None:
    found = {int(row[0]): row[1] for row in rows("## Exit codes")}
    assert set(found) == {1, 2, *EXIT_CODES.values()}
    words = {"pass": "met", "fail": "missed", "undecided": "undecided", "not_measured": "not measured"}
    for verdict, code in EXIT_CODES.items():
        assert words[verdict.value] in found[code]


def test_the_table_of_tolerances_has_their_defaults() -> None:
    found = {row[0].removeprefix("--").replace("-", "_"): float(row[1]) for row in rows("## Regressions between")}
    assert found == {name: field.default for name, field in Tolerances.model_fields.items()}


def test_the_table_of_inputs_is_whole() -> None:
    assert [row[0] for row in rows("| input |")] == list(INPUTS)
