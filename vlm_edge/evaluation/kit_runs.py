"""Files that a run leaves beside its build kit, so that the device can judge it: baseline's kit, queries, sums.

A run's folder with a kit has ``run.json`` (the budgets, and the accuracy that another engine had on the same graphs),
``bundle/`` (the kit), ``kit/baseline/``, ``kit/queries.json`` with its images, and ``kit/SHA256SUMS`` over all of that.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from vlm_edge.backends.kits import AGAIN, SUMS_NAME, require_sums, write_sums
from vlm_edge.checked import first_fault
from vlm_edge.core.artifact import digest_folder
from vlm_edge.core.record import RECORD_NAME, RunRecord, VariantRecord, read_record
from vlm_edge.data.kinds import TaskKind
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.queries import Samples
from vlm_edge.files import replace_folder
from vlm_edge.processing.bounds import FileName, Frozen, Layout
from vlm_edge.processing.sealing import MANIFEST_NAME, parse_manifest

BUNDLE, KIT_FOLDER, BASELINE = "bundle", "kit", "kit/baseline"
QUERIES_NAME, SUMS = "kit/queries.json", f"kit/{SUMS_NAME}"
MOST_IMAGE_BYTES = 1 << 26
"""Of the queries' images together; the first is copied in any case."""
MOST_RECORD_BYTES = 1 << 26


class Queries(Frozen):
    """``kit/queries.json``: ``items`` are an image's name in the folder and a text."""

    task: TaskKind
    items: tuple[tuple[FileName, Layout], ...] = Field(min_length=1, max_length=1024)
    labels: tuple[Layout, ...] = Field(default=(), max_length=1 << 16)
    prompts: tuple[Layout, ...] = Field(default=(), max_length=1024)


def complete_kit(run: Path, baseline: Path, samples: Samples) -> None:
    """Write all that goes beside a run's kit.

    Args:
        run: the run's folder; its record and bundle are there.
        baseline: the folder of the baseline's kit.
        samples: whose images are copied as they are.
    """
    shutil.rmtree(run / KIT_FOLDER, ignore_errors=True)
    replace_folder(baseline, run / BASELINE)
    items: list[list[str]] = []
    total = 0
    for place, text in samples["items"]:
        source = Path(place)
        total += source.stat().st_size
        if items and total > MOST_IMAGE_BYTES:
            break
        name = f"{len(items)}{source.suffix if source.suffix[1:].isalnum() else ''}"
        shutil.copyfile(source, run / KIT_FOLDER / name)
        items.append([name, text])
    content = Queries.model_validate({**samples, "items": items}).model_dump(mode="json")
    (run / QUERIES_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    parts = [path for folder in (BUNDLE, KIT_FOLDER) for path in (run / folder).rglob("*") if path.is_file()]
    write_sums(run, [RECORD_NAME, *(path.relative_to(run).as_posix() for path in parts)], SUMS)


@dataclass(frozen=True)
class KitRun:
    """A run's folder that holds a kit. ``variant`` is the one that the kit is of."""

    folder: Path
    record: RunRecord
    variant: VariantRecord
    samples: Samples

    @property
    def kit(self) -> Path:
        return self.folder / BUNDLE

    @property
    def baseline(self) -> Path:
        return self.folder / BASELINE


def read_kit_run(folder: Path) -> KitRun:
    """A run's folder with a kit, every file held to its sum before one is parsed.

    Raises:
        VlmEdgeError: a file is missing, a link, altered or out of bounds; or the kit is none of the record's variants.
    """
    listed = require_sums(folder, SUMS)
    needed = (RECORD_NAME, QUERIES_NAME, f"{BUNDLE}/{MANIFEST_NAME}", f"{BASELINE}/{MANIFEST_NAME}")
    if missing := [name for name in needed if name not in listed]:
        raise VlmEdgeError(f"{folder / SUMS}: no line for {missing[0]}", AGAIN)
    if (size := (folder / RECORD_NAME).stat().st_size) > MOST_RECORD_BYTES:
        raise VlmEdgeError(f"{folder / RECORD_NAME}: {size} bytes; at most {MOST_RECORD_BYTES} are read", AGAIN)
    record, engine = read_record(folder), digest_folder(folder / BUNDLE)
    variant = next((each for each in record.variants if each.artifacts.get("engine") == engine), None)
    if variant is None:
        raise VlmEdgeError(f"{folder / BUNDLE}: none of the kits that the record is of", AGAIN)
    if record.variants[0].artifacts.get("engine") != digest_folder(folder / BASELINE):
        raise VlmEdgeError(f"{folder / BASELINE}: not the baseline's kit of the record", AGAIN)
    if any("/" in each.name or "\0" in each.name for each in (variant, record.variants[0])):
        raise VlmEdgeError(f"{folder / RECORD_NAME}: a variant's name can't be a file's", AGAIN)
    try:
        queries = Queries.model_validate(parse_manifest(folder / QUERIES_NAME))
    except ValidationError as error:
        raise VlmEdgeError(f"{folder / QUERIES_NAME}: {first_fault(error, Queries)}", AGAIN) from error
    if unlisted := [name for name, _ in queries.items if f"{KIT_FOLDER}/{name}" not in listed]:
        raise VlmEdgeError(f"{folder / SUMS}: no line for {KIT_FOLDER}/{unlisted[0]}", AGAIN)
    samples = queries.model_dump(mode="json")
    samples["items"] = [[str((folder / KIT_FOLDER / name).resolve()), text] for name, text in queries.items]
    return KitRun(folder, record, variant, samples)
