"""Sources of a manifest's samples: the folder of an installed package, or a folder of the user's."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vlm_edge.data.coco_captions import COCO_FILES, read_coco_captions
from vlm_edge.data.dataset import Sample
from vlm_edge.data.easy_vqa import read_easy_vqa
from vlm_edge.data.image_folder import METADATA_NAME, read_image_folder
from vlm_edge.data.kinds import TaskKind
from vlm_edge.data.manifest import DatasetManifest
from vlm_edge.data.pope import POPE_FILES, read_pope
from vlm_edge.errors import VlmEdgeError, short

Reader = Callable[[DatasetManifest, Path], list[Sample]]
"""(manifest, folder of the part) -> samples in a fixed order."""


@dataclass(frozen=True)
class PackageSource:
    """A data set that a Python package carries: the import name, the folder inside it, and what reads it."""

    module: str
    subfolder: str
    reader: Reader


PACKAGES: dict[str, PackageSource] = {"easy-vqa": PackageSource("easy_vqa", "data", read_easy_vqa)}


FORMATS: dict[TaskKind, tuple[str, Callable[[Path], list[Sample]]]] = {
    "captioning": (COCO_FILES, read_coco_captions),
    "hallucination": (POPE_FILES, read_pope),
}
"""Files of other projects that are read as they are, beside the images: their names' pattern, and what reads them."""


def read_folder(manifest: DatasetManifest, folder: Path) -> list[Sample]:
    """A part's samples from ``metadata.jsonl``, or where there is none from the files of another project."""
    if manifest.kind in FORMATS and not (folder / METADATA_NAME).is_file():
        pattern, reader = FORMATS[manifest.kind]
        if any(folder.glob(pattern)):
            return reader(folder)
    return read_image_folder(manifest, folder)


@dataclass(frozen=True)
class OpenSource:
    """A source that was found: its root folder (parts are folders below it) and what reads a part."""

    root: Path
    reader: Reader

    def part(self, name: str) -> Path:
        return self.root / name


def open_source(manifest: DatasetManifest, manifest_path: Path) -> OpenSource:
    """Find the manifest's source on this machine, without importing the package.

    Raises:
        VlmEdgeError: the package is unknown, not installed or of another version; the folder is missing.
    """
    if manifest.source.folder is not None:
        root = manifest_path.parent / manifest.source.folder
        if not os.path.isdir(root):  # noqa: PTH112  (Path.is_dir raises for a name that is too long)
            raise VlmEdgeError(
                f"{manifest_path}: source.folder: no folder {short(str(root))}",
                "the path is relative to the manifest's folder",
            )
        return OpenSource(root, read_folder)
    name = manifest.source.package or ""
    if name not in PACKAGES:
        raise VlmEdgeError(
            f"{manifest_path}: source.package: {short(name)} is no known data package; known: {', '.join(PACKAGES)}",
            "other data are read as a folder of images with metadata.jsonl: source: {folder: ...}",
        )
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise VlmEdgeError(f"{manifest_path}: source.package: {name} is not installed", 'pip install "vlm-edge[demo]"')
    installed, wanted = importlib.metadata.version(name), manifest.source.version
    if wanted is not None and installed != wanted:
        raise VlmEdgeError(
            f"{manifest_path}: source.version: {name} {installed} is installed, the manifest is for {short(wanted)}",
            f'pip install "{name}=={short(wanted)}"',
        )
    return OpenSource(Path(spec.origin).parent / package.subfolder, package.reader)
