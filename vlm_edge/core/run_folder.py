"""The folder of a run, ``runs/NAME/``: its record, outcomes and bundle, written as far as the run has got.

The record is whole at any moment: that of the run before, moved aside when this one begins, or this one's, marked
incomplete until it has ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from vlm_edge.core.record import (
    OUTCOMES_FOLDER,
    PREVIOUS_NAME,
    RECORD_NAME,
    REGRESSIONS_NAME,
    RunRecord,
    VariantRecord,
    read_record,
)
from vlm_edge.core.stage import Progress
from vlm_edge.core.store import write_json_atomically
from vlm_edge.errors import VlmEdgeError
from vlm_edge.files import alone_in, replace_folder

Describe = Callable[[Sequence[VariantRecord], str | None], RunRecord]
"""Makes the record of some variants, and of why it is incomplete (None: it is not)."""


class RunFolder:
    """The record that one run writes. ``variants`` are those that were measured so far."""

    def __init__(self, folder: Path, describe: Describe, measured: Callable[[RunRecord], None] | None) -> None:
        self.folder = folder
        self.variants: list[VariantRecord] = []
        self._describe = describe
        self._measured = measured
        self._regressions: dict[str, list[dict[str, Any]]] = {}

    @contextmanager
    def open(self, progress: Progress) -> Iterator[None]:
        """Have the folder alone, waiting for another run that has it; an exception ends up in the record."""
        waiting = partial(progress.bar, f"waiting for another run of {self.folder.name} to end", None)
        with alone_in(self.folder, waiting):
            self._put_aside()
            try:
                yield
            except BaseException as error:
                with suppress(VlmEdgeError):  # a disk that is full: the record says by now that the run did not end
                    if self.variants:
                        self._write(_reason(error))
                raise

    def add(self, variant: VariantRecord, outcomes: dict[str, Any] | None, regressions: list[dict[str, Any]]) -> None:
        """Write one more variant; ``outcomes`` is None where nothing was measured."""
        if outcomes is not None:
            write_json_atomically(self.folder / OUTCOMES_FOLDER / f"{variant.name}.json.gz", outcomes)
            self._regressions[variant.name] = regressions
        write_json_atomically(self.folder / REGRESSIONS_NAME, self._regressions)
        self.variants.append(variant)
        record = self._write("it was started, and did not end")
        if self._measured is not None:
            self._measured(record)

    def finish(self, engine: Path | None) -> RunRecord:
        """Write the complete record, with the engine as its bundle."""
        if engine is not None:
            replace_folder(engine, self.folder / "bundle")
        return self._write(None)

    def _write(self, incomplete: str | None) -> RunRecord:
        record = self._describe(self.variants, incomplete)
        write_json_atomically(self.folder / RECORD_NAME, record.model_dump(mode="json"))
        return record

    def _put_aside(self) -> None:
        """Move the record of the run before away; an incomplete one stays until there is more to tell."""
        file = self.folder / RECORD_NAME
        try:
            ended = read_record(file).incomplete is None
        except VlmEdgeError:
            ended = file.exists()
        if ended:
            file.replace(self.folder / PREVIOUS_NAME)
        shutil.rmtree(self.folder / OUTCOMES_FOLDER, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """The reason that a run did not reach its end."""
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    text = error.message if isinstance(error, VlmEdgeError) else f"{type(error).__name__}: {error}"
    return text.strip()[:1000]
