"""docs/families.md's table: what each family's test measured, against the bars, and as the page says it.

The bounds that the page names are the bars that every host is held to, not what one of them measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from family_checkpoints import Exported
from torch import Tensor

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- measured: make families-table -->", "<!-- end -->"
COMPONENT_BAR, COSINE_BAR, SCORE_BAR, TOKENS = 1e-4, 1e-5, 1e-4, 32
BATCHES, LENGTHS = (2, 3), (4, 9)
BATCH_DIMENSIONS = {"images", "texts", "batch"}


@dataclass(frozen=True)
class Row:
    """One line of the table, cell by cell."""

    model: str
    architectures: str
    components: str
    pipeline: str
    answers: str
    differs: str

    def line(self) -> str:
        return f"| {' | '.join(astuple(self))} |"


def row(
    name: str,
    subject: Exported,
    differs: str,
    *,
    tokens: Sequence[Sequence[int]] = (),
    cosine: float | None = None,
    score_error: float | None = None,
    answer_error: float | None = None,
) -> Row:
    """One model's row; every bar is asserted.

    Args:
        name: the row's.
        subject: the exported model.
        differs: what its export leaves out or does otherwise than transformers.
        tokens: answers that were found identical to ``generate``'s, with a cache and without.
        cosine: the least cosine between its embeddings and transformers'.
        score_error: the largest difference of its scores of pairs.
        answer_error: the largest difference of its scores of answers, the best of which were found the same.
    """
    errors = component_errors(subject)
    assert max(errors.values()) < COMPONENT_BAR, errors
    said = []
    if tokens:
        assert max(map(len, tokens)) == TOKENS
        said.append(f"{TOKENS} tokens identical, with and without cache")
    if cosine is not None:
        assert 1 - cosine < COSINE_BAR
        said.append(f"embeddings' cosine distance < {COSINE_BAR:.0e}")
    if score_error is not None:
        assert score_error < SCORE_BAR
        said.append(f"scores of pairs < {SCORE_BAR:.0e}")
    if answer_error is not None:
        assert answer_error < SCORE_BAR
        said.append(f"answers identical, their scores < {SCORE_BAR:.0e}")
    assert said
    return Row(
        model=name,
        architectures=", ".join(f"`{each}`" for each in subject.family.architectures or [_class(subject)]),
        components=", ".join(errors),
        pipeline=subject.manifest.pipeline,
        answers="; ".join(said),
        differs=differs,
    )


def _class(subject: Exported) -> str:
    """The model's class, of a family that another one's architecture leads to."""
    return type(subject.loaded.model).__name__


def component_errors(subject: Exported) -> dict[str, float]:
    """Each graph against its torch module on onnxruntime: the largest difference, relative to the output's largest
    value, over :data:`BATCHES` x :data:`LENGTHS`."""
    family, loaded = subject.family, subject.loaded
    exports = family.components(loaded.model, family.image_processing(loaded.folder))
    errors = {}
    for name, export in exports.items():
        session = onnxruntime.InferenceSession(subject.folder / subject.manifest.components[name].file)
        errors[name] = 0.0
        for feed in _feeds(export):
            with torch.no_grad():
                expected = export.module(*feed.values())
            actual = session.run(None, {key: tensor.numpy() for key, tensor in feed.items()})
            for ours, theirs in zip(actual, expected, strict=True):
                assert ours.shape == tuple(theirs.shape)
                difference = np.abs(ours - theirs.numpy()).max() / theirs.abs().max().item()
                errors[name] = max(errors[name], float(difference))
    return errors


def _feeds(export: Any) -> Iterator[dict[str, Tensor]]:
    names = sorted({dimension for axes in export.dynamic.values() for dimension in axes.values()})
    plain = [name for name in names if " + " not in name]
    lengths = LENGTHS if set(plain) - BATCH_DIMENSIONS else LENGTHS[:1]
    for batch in BATCHES:
        for length in lengths:
            sizes = {name: batch if name in BATCH_DIMENSIONS else length for name in plain}
            yield {name: _sized(tensor, export.dynamic.get(name, {}), sizes) for name, tensor in export.example.items()}


def _sized(tensor: Tensor, axes: Mapping[int, str], sizes: Mapping[str, int]) -> Tensor:
    """The tensor repeated along its dynamic axes, then cut; a size may be a sum of names."""
    for axis, dimension in axes.items():
        size = sum(sizes[part] for part in dimension.split(" + "))
        index = torch.arange(size) % tensor.shape[axis]
        tensor = tensor.index_select(axis, index)
    return tensor.contiguous()


def read_rows() -> dict[str, Row]:
    """The rows of the committed page, by model."""
    table = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    cells = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in table.strip().splitlines()[2:]]
    return {line[0]: Row(*line) for line in cells}


def write_rows(rows: Mapping[str, Row], order: Sequence[str]) -> None:
    """Put rows into the page; those of other models stay, if ``order`` has them."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    table, tail = rest.split(END)
    titles = table.strip().splitlines()[:2]
    kept = {**read_rows(), **rows}
    lines = [*titles, *(kept[name].line() for name in order if name in kept)]
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}", encoding="utf-8")
