"""``vlm-edge init``: write a commented recipe that fits a model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from vlm_edge.cli.settings import Settings, echo, gathered, pass_settings
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import write_atomically
from vlm_edge.names import near

_EXAMPLE_DATA = {
    "vqa": "calibration/easy-vqa.yaml",
    "classification": "calibration/easy-vqa-zero-shot.yaml",
    "retrieval": "calibration/easy-vqa-retrieval.yaml",
    "hallucination": "calibration/easy-vqa-hallucination.yaml",
}
_PLAIN = re.compile(r"[A-Za-z0-9_./:@-]*[A-Za-z][A-Za-z0-9_./@-]*")

_TEMPLATE = """\
# Written by `vlm-edge init` for {architecture}. docs/recipe.md lists every key.
# Check it with `vlm-edge check {file}`, run it with `vlm-edge run {file}`.
name: {name}
model: {model}
task: {{kind: {kind}, data: {data}}}
target: {target}
budgets:                          # every variant is judged on these; the last one must meet them all
  accuracy: {{max_drop_pt: 1.0}}    # points lost against the FP32 model, the whole 95% interval
  latency: {{p90_speedup: 2.0}}     # end to end, against the FP32 model; or p90_ms: 50 for a fixed limit
  size: {{max_ratio: 0.3}}          # on disk, against the FP32 model; or max_mb: 100
stages:                           # in the order to try them, the cheapest first
  - export: {{}}
  - quantize: {{components: {{"*": int8}}}}
{model_stages}  - compile: {{}}
# run: until-met                  # stop at the first variant that meets every budget
seed: 0
"""

_PRUNE_AND_DISTILL = """\
  - prune: {cross_attention: {heads: 0.5}, recover: {epochs: 2}}
  # - distill: {student: mobilevit-xs, epochs: 20}   # a small vision tower: hours without a GPU
"""
_MODEL_STAGES = {
    "vqa": _PRUNE_AND_DISTILL,
    "captioning": _PRUNE_AND_DISTILL,
    "dual_encoder": """\
  # - distill: {student: mobilevit-xs, epochs: 20}   # a small vision tower: hours without a GPU
""",
}


@dataclass(frozen=True)
class _Wanted:
    target: str
    kind: str | None
    data: Path | None
    name: str | None


@click.command()
@click.argument("model")
@click.option("--target", default="cpu-ort", show_default=True, help="A name of recipes/targets/, or a target's file.")
@click.option("--task", "kind", help="The task's kind, such as vqa.  [default: the model's first]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Manifest of the task's data.  [default for the zoo's models: the data that they were trained on]",
)
@click.option("--name", help="Name of the recipe and of its run.  [default: the file's]")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("recipe.yaml"), show_default=True)
@click.option("--force", is_flag=True, help="Overwrite the file.")
@pass_settings
@gathered(_Wanted, "wanted")
def init(settings: Settings, model: str, wanted: _Wanted, out: Path, force: bool) -> None:
    """Write a recipe for MODEL: a zoo name (zoo:NAME), a Hugging Face folder or a Hub id."""
    from vlm_edge.api import find_target

    if out.exists() and not force:
        raise VlmEdgeError(f"{out}: exists already", "give another file with --out, or --force to overwrite it")
    find_target(wanted.target)
    with settings.working() as progress, progress.bar(f"reading {model}", None):
        architecture, pipeline, kinds = _describe(model)
    kind = wanted.kind or kinds[0]
    if kind not in kinds:
        raise VlmEdgeError(f"{model} ({architecture}) can't do the task {kind!r}; {near(kind, kinds)}")
    if wanted.data is None and not model.startswith("zoo:"):
        example = _EXAMPLE_DATA.get(kind, f"a manifest of kind {kind}; docs/measuring.md describes it")
        raise VlmEdgeError(f"{model}: no data to calibrate and measure on", f"name it with --data, such as {example}")
    recipe = _TEMPLATE.format(
        architecture=architecture,
        file=out,
        name=_scalar(wanted.name or re.sub(r"[^A-Za-z0-9._-]+", "-", out.stem)),
        model=_scalar(model),
        kind=kind,
        data=_scalar(str(wanted.data or _EXAMPLE_DATA[kind])),
        target=_scalar(wanted.target),
        model_stages=_MODEL_STAGES.get(pipeline, ""),
    )
    write_atomically(out, recipe.encode())
    echo(f"{out}: a recipe for {architecture} on {wanted.target}; check it with `vlm-edge check {out}`")


def _describe(model: str) -> tuple[str, str, Sequence[str]]:
    """Architecture, pipeline and task kinds of a model, from its config.json."""
    from vlm_edge.checkpoints.config import read_config
    from vlm_edge.checkpoints.sources import resolve_model
    from vlm_edge.evaluation.tasks import tasks_of_kind
    from vlm_edge.families.loading import find_family

    folder = resolve_model(model)
    config = read_config(folder)
    family = find_family(folder, config)
    return str(config["architectures"][0]), family.pipeline, tasks_of_kind(family.pipeline)


def _scalar(text: str) -> str:
    """A YAML scalar: as it is when nothing in it can be misread, else in double quotes (JSON is YAML)."""
    misread = text.lower() in {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
    return text if _PLAIN.fullmatch(text) and not misread else json.dumps(text)
