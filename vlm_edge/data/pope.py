"""Polls about objects in POPE's files (Li, Du, Zhou et al., arXiv:2305.10355; github.com/RUCAIBox/POPE).

A part's folder holds the images and one or more files ``*pope*.json``, such as ``coco_pope_random.json``. A line is a
JSON object with ``image`` (relative to the folder), ``text`` (the question) and ``label`` (yes or no).
"""

from __future__ import annotations

from pathlib import Path

from vlm_edge.data.dataset import Sample
from vlm_edge.data.image_folder import check_faults, image_in, lines_of, row_of
from vlm_edge.data.kinds import LineError, text_of, yes_or_no

POPE_FILES = "*pope*.json*"


def read_pope(folder: Path) -> list[Sample]:
    """Samples in the order of the files' names and of their lines.

    A question's slice is how its object was drawn, which the last part of the file's name says: ``random``,
    ``popular`` or ``adversarial``.

    Raises:
        VlmEdgeError: a file is not UTF-8.
        RecipeError: the faults of the lines, as ``coco_pope_random.json:LINE: ...``.
    """
    samples: list[Sample] = []
    faults: list[str] = []
    for path in sorted(folder.glob(POPE_FILES)):
        category = path.stem.rpartition("_")[2]
        for number, line in lines_of(path, "copy the file again"):
            try:
                samples.append(_sample(folder, line, f"{path.stem}#{number}", category))
            except LineError as error:
                faults.append(f"{path}:{number}: {error}")
    check_faults(faults, "correct these lines, or remove them")
    return samples


def _sample(folder: Path, line: str, identity: str, category: str) -> Sample:
    row = row_of(line)
    return Sample(
        identity, image_in(folder, row, "image"), text_of(row, "text"), (yes_or_no(row, "label"),), (category,)
    )
