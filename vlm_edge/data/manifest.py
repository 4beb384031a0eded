"""The manifest of a data set (``calibration/*.yaml``): its source, licence, digests and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict, StringConstraints, ValidationError, field_validator, model_validator

from vlm_edge.checked import CheckedModel, faults_of
from vlm_edge.data.dataset import Split
from vlm_edge.data.kinds import KINDS, TaskKind
from vlm_edge.documents import read_yaml, reason
from vlm_edge.errors import RecipeError, VlmEdgeError, short

ANY_PART = "*"
MAX_GENERATED = 100_000
"""Images of a generated part."""
Texts = Annotated[tuple[str, ...], Strict(False), Field(max_length=50_000)]


class SourceSpec(CheckedModel):
    """The source of the data: an installed Python package, a folder (relative to the manifest), or a generator.

    A generator makes ``images`` of them for each part: one number for all, or a mapping of parts to numbers.
    """

    package: str | None = None
    version: str | None = None
    folder: str | None = None
    generator: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**64)
    images: dict[str, Annotated[int, Field(ge=1, le=MAX_GENERATED)]] | None = Field(default=None, min_length=1)

    @field_validator("images", mode="before")
    @classmethod
    def _of_every_part(cls, value: Any) -> Any:
        return {ANY_PART: value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _one_of(self) -> SourceSpec:
        if [self.package, self.folder, self.generator].count(None) != 2:
            raise ValueError("give exactly one of `package`, `folder` and `generator`")
        if self.version is not None and self.package is None:
            raise ValueError("`version` belongs to a `package`")
        if (self.images is None) != (self.generator is None) or (
            "seed" in self.model_fields_set and not self.generator
        ):
            raise ValueError("a `generator` needs `images` and may have a `seed`; no other source has them")
        return self

    def images_of(self, part: str) -> int | None:
        """Images that the generator makes of a part; None if the manifest names no number for it."""
        images = self.images or {}
        return images.get(part, images.get(ANY_PART))


class SplitSpec(CheckedModel):
    """One split: the part of the source that it reads, and how many samples it draws at most (None: all)."""

    source_part: str = Field(alias="from", min_length=1)
    samples: int | None = Field(default=None, ge=1, le=2**31)
    seed: int = Field(default=0, ge=0, lt=2**64)


class DatasetManifest(CheckedModel):
    """``calibration/*.yaml``. ``digests`` maps a part of the source to the sha256 of its content.

    ``labels`` and ``prompts`` belong to classification: the candidate classes in the order of the model's answer, and
    templates with ``{}`` where the class goes. In captioning, one of ``prompts`` may say how every caption begins.
    """

    name: str = Field(min_length=1, max_length=200)
    kind: TaskKind
    description: str = ""
    source: SourceSpec
    licence: str = Field(min_length=1)
    homepage: str = ""
    digests: dict[str, Annotated[str, StringConstraints(max_length=64)]] = Field(default={})
    splits: dict[Split, SplitSpec] = Field(min_length=1)
    preprocessing: str = ""
    labels: Texts = ()
    prompts: Texts = ()

    @model_validator(mode="after")
    def _consistent(self) -> DatasetManifest:
        problems = [*KINDS[self.kind].faults(self.labels, self.prompts), *self._overlap_problems()]
        if self.source.generator is not None:
            problems += [
                f"splits.{name} reads `{short(spec.source_part)}`, which source.images does not have"
                for name, spec in self.splits.items()
                if self.source.images_of(spec.source_part) is None
            ]
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
    example = "calibration/easy-vqa.yaml is an example"
    try:
        content = read_yaml(path)
    except RecipeError as error:
        raise RecipeError(error.faults, example) from error
    except (OSError, ValueError) as error:
        raise VlmEdgeError(
            f"{short(str(path))}: can't read this data manifest: {reason(error)}",
            f"give the path of a YAML manifest; {example}",
        ) from error
    if not isinstance(content, dict):
        keys = "name, kind, source, licence and splits"
        raise VlmEdgeError(f"{path}: a data manifest is a mapping with at least {keys}", example)
    try:
        return DatasetManifest.model_validate(content)
    except ValidationError as error:
        faults = [
            ": ".join(part for part in (path.name, *fault) if part) for fault in faults_of(error, DatasetManifest)
        ]
        raise RecipeError(faults, f"{example}, docs/measuring.md says what each key is for") from error
