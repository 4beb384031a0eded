"""The manifest of a data set (``calibration/*.yaml``): its source, licence, digests and splits."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlm_edge.data.dataset import Split, TaskKind
from vlm_edge.data.kinds import KINDS
from vlm_edge.errors import RecipeError, VlmEdgeError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSpec(_Frozen):
    """Where the data come from: an installed Python package, or a folder (relative to the manifest)."""

    package: str | None = None
    version: str | None = None
    folder: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> SourceSpec:
        if (self.package is None) == (self.folder is None):
            raise ValueError("give exactly one of `package` and `folder`")
        if self.version is not None and self.package is None:
            raise ValueError("`version` belongs to a `package`")
        return self


class SplitSpec(_Frozen):
    """One split: the part of the source that it reads, and how many samples it draws at most (None: all)."""

    source_part: str = Field(alias="from", min_length=1)
    samples: int | None = Field(default=None, ge=1)
    seed: int = 0


class DatasetManifest(_Frozen):
    """``calibration/*.yaml``. ``digests`` maps a part of the source to the sha256 of its content.

    ``labels`` and ``prompts`` belong to classification: the candidate classes in the order of the model's answer, and
    templates with ``{}`` where the class goes. In captioning, one of ``prompts`` may say how every caption begins.
    """

    name: str = Field(min_length=1)
    kind: TaskKind
    description: str = ""
    source: SourceSpec
    licence: str
    homepage: str = ""
    digests: dict[str, str] = {}
    splits: dict[Split, SplitSpec] = Field(min_length=1)
    preprocessing: str = ""
    labels: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> DatasetManifest:
        problems = [*KINDS[self.kind].faults(self.labels, self.prompts), *self._overlap_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _overlap_problems(self) -> list[str]:
        test = self.splits.get("test")
        if test is None or test.samples is not None:
            return []
        return [
            f"splits.{name} reads `{spec.source_part}`, which splits.test takes whole: give splits.test `samples`"
            for name, spec in self.splits.items()
            if name != "test" and spec.source_part == test.source_part
        ]


def read_dataset_manifest(path: Path) -> DatasetManifest:
    """Read and check a manifest.

    Raises:
        VlmEdgeError: the file is missing or is not YAML.
        RecipeError: every fault in it, each with its place.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise VlmEdgeError(
            f"{path}: cannot read this data manifest: {error}",
            "give the path of a YAML manifest; calibration/easy-vqa.yaml is an example",
        ) from error
    except yaml.YAMLError as error:
        raise VlmEdgeError(f"{path}: not YAML: {error}", "correct the line that is named above") from error
    if not isinstance(content, dict):
        raise VlmEdgeError(f"{path}: a data manifest is a mapping of name, kind, source, licence, splits")
    try:
        return DatasetManifest.model_validate(content)
    except ValidationError as error:
        raise RecipeError(
            [_fault(path.name, detail) for detail in error.errors()], "calibration/easy-vqa.yaml is an example"
        ) from error


_KEYS: dict[str, type[BaseModel]] = {"": DatasetManifest, "source": SourceSpec, "splits": SplitSpec}


def _fault(file: str, detail: Any) -> str:
    """One pydantic error as ``file: place: what was wrong and what is allowed``."""
    parts = [str(part) for part in detail["loc"] if part != "[key]"]
    place = ".".join(parts)
    if detail["type"] != "extra_forbidden":
        message = detail["msg"].removeprefix("Value error, ")
        return f"{file}: {place}: {message}" if place else f"{file}: {message}"
    model = _KEYS[parts[0] if len(parts) > 1 else ""]
    allowed = [field.alias or name for name, field in model.model_fields.items()]
    near = difflib.get_close_matches(parts[-1], allowed, n=1)
    guess = f"; did you mean {near[0]}?" if near else ""
    return f"{file}: {place}: unknown key; known: {', '.join(allowed)}{guess}"
