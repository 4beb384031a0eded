"""Files of other projects that are read as they are: COCO's captions and POPE's polls.

COCO (Chen, Fang, Lin et al., arXiv:1504.00325; https://cocodataset.org/#format-data): a part's folder holds the images
and one file ``captions*.json``: an object with ``images``, a list of ``id`` and ``file_name`` (relative to the folder),
and ``annotations``, a list of ``image_id`` and ``caption``.

POPE (Li, Du, Zhou et al., arXiv:2305.10355; github.com/RUCAIBox/POPE): a part's folder holds the images and one or more
files ``*pope*.json``, such as ``coco_pope_random.json``. A line is a JSON object with ``image`` (relative to the
folder), ``text`` (the question) and ``label`` (yes or no).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_edge.data.dataset import Sample
from vlm_edge.data.image_folder import check_faults, image_in, lines_of, row_of
from vlm_edge.data.kinds import LineError, text_of, yes_or_no
from vlm_edge.documents import read_json
from vlm_edge.errors import VlmEdgeError, shown

COCO_FILES = "captions*.json"
MAX_BYTES = 2**29


def read_coco_captions(folder: Path) -> list[Sample]:
    """One sample an image, in the order of ``images``, with every caption of it in the order of ``annotations``.

    Raises:
        VlmEdgeError: there are several such files, or the file is no such JSON.
        RecipeError: the faults of its entries, as ``captions.json: annotations[5]: ...``.
    """
    path = _only_file(folder)
    images, annotations = _lists(path)
    faults: list[str] = []
    captions: dict[int | str, list[str]] = defaultdict(list)
    for index, row in enumerate(annotations):
        try:
            captions[_identity(row, "image_id")].append(text_of(row, "caption"))
        except LineError as error:
            faults.append(f"{path}: annotations[{index}]: {error}")
    samples: dict[int | str, Sample] = {}
    listed: set[int | str] = set()
    for index, row in enumerate(images):
        try:
            identity = _identity(row, "id")
            if identity in listed:
                raise LineError(f"id: {shown(identity)} is another image's, too")
            listed.add(identity)
            if identity not in captions:
                raise LineError(f"no caption of image {shown(identity)} among the annotations")
            image = image_in(folder, row, "file_name")
            samples[identity] = Sample(str(identity), image, "", tuple(captions[identity]))
        except LineError as error:
            faults.append(f"{path}: images[{index}]: {error}")
    unknown = captions.keys() - listed
    if unknown:
        first = ", ".join(map(shown, sorted(unknown, key=str)[:5]))
        faults.append(f"{path}: annotations: {len(unknown)} images that `images` does not list, such as {first}")
    check_faults(faults, f"correct these entries of {path.name}, or remove them")
    return list(samples.values())


def _only_file(folder: Path) -> Path:
    found = sorted(folder.glob(COCO_FILES))
    if len(found) > 1:
        raise VlmEdgeError(
            f"{folder}: {len(found)} files of captions: {', '.join(path.name for path in found)}",
            "leave the one that belongs to this part",
        )
    return found[0]


def _lists(path: Path) -> tuple[list[Any], list[Any]]:
    hint = "give COCO's captions file: {images: [...], annotations: [...]}"
    content = read_json(path, MAX_BYTES, hint)
    found = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
    if not all(isinstance(each, list) and each for each in found):
        raise VlmEdgeError(f"{path}: `images` and `annotations` must both be lists that hold something", hint)
    return found[0], found[1]  # type: ignore[return-value]  # both were found to be lists


def _identity(row: Mapping[str, Any], key: str) -> int | str:
    """A number or a text, as COCO and data sets in its format use."""
    if not isinstance(row, dict):
        raise LineError("an entry is a JSON object")
    value = row.get(key)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise LineError(f"{key}: give a number or a text, not {shown(value)}")
    return value


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
                row = row_of(line)
                image, text, label = image_in(folder, row, "image"), text_of(row, "text"), yes_or_no(row, "label")
                samples.append(Sample(f"{path.stem}#{number}", image, text, (label,), (category,)))
            except LineError as error:
                faults.append(f"{path}:{number}: {error}")
    check_faults(faults, "correct these lines, or remove them")
    return samples
