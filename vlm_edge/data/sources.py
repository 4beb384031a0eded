"""Sources of a manifest's samples: the folder of an installed package, a folder of the user's, or a generator."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vlm_edge.data.dataset import Sample
from vlm_edge.data.easy_vqa import read_easy_vqa
from vlm_edge.data.image_folder import METADATA_NAME, read_image_folder
from vlm_edge.data.kinds import TaskKind
from vlm_edge.data.manifest import DatasetManifest
from vlm_edge.data.other_formats import COCO_FILES, POPE_FILES, read_coco_captions, read_pope
from vlm_edge.data.scene_folder import write_scenes
from vlm_edge.digests import cache_folder
from vlm_edge.documents import reason
from vlm_edge.errors import VlmEdgeError, short
from vlm_edge.files import whole_folder
from vlm_edge.names import near

Reader = Callable[[DatasetManifest, Path], list[Sample]]
"""(manifest, folder of the part) -> samples in a fixed order."""


@dataclass(frozen=True)
class PackageSource:
    """A data set that a Python package carries: the import name, the folder inside it, and what reads it."""

    module: str
    subfolder: str
    reader: Reader


PACKAGES: dict[str, PackageSource] = {"easy-vqa": PackageSource("easy_vqa", "data", read_easy_vqa)}


@dataclass(frozen=True)
class Generator:
    """A data set that is made here and kept in the user's cache folder.

    Args:
        version: raised whenever it would make other files of the same arguments.
        kinds: of the tasks that it knows.
        write: (kind, seed, part, images, folder) -> fills the folder with images and ``metadata.jsonl``.
    """

    version: int
    kinds: tuple[TaskKind, ...]
    write: Callable[[TaskKind, int, str, int, Path], None]


GENERATORS: dict[str, Generator] = {"scenes": Generator(1, ("vqa", "retrieval"), write_scenes)}

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
    """A source that was found: the folder of a part, what reads it, and the next step where its content is wrong."""

    part: Callable[[str], Path]
    reader: Reader
    restore: str = "restore or reinstall the data"


def open_source(manifest: DatasetManifest, manifest_path: Path) -> OpenSource:
    """Find the manifest's source on this machine, without importing the package.

    Raises:
        VlmEdgeError: the package is unknown, not installed or of another version; the folder is missing; the generator
            is unknown or has nothing for the manifest's kind of task.
    """
    if manifest.source.generator is not None:
        return _open_generator(manifest, manifest_path, manifest.source.generator)
    if manifest.source.folder is not None:
        root = manifest_path.parent / manifest.source.folder
        if not os.path.isdir(root):  # noqa: PTH112  (Path.is_dir raises for a name that is too long)
            raise VlmEdgeError(
                f"{manifest_path}: source.folder: no folder {short(str(root))}",
                "the path is relative to the manifest's folder",
            )
        return OpenSource(root.joinpath, read_folder)
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
    return OpenSource((Path(spec.origin).parent / package.subfolder).joinpath, package.reader)


def _open_generator(manifest: DatasetManifest, manifest_path: Path, name: str) -> OpenSource:
    generator = GENERATORS.get(name)
    if generator is None:
        raise VlmEdgeError(f"{manifest_path}: source.generator: no generator {short(name)}", near(name, GENERATORS))
    kind, seed = manifest.kind, manifest.source.seed
    if kind not in generator.kinds:
        raise VlmEdgeError(
            f"{manifest_path}: kind: the generator {name} has no {kind} task", f"it has {' and '.join(generator.kinds)}"
        )

    def part_of(part: str) -> Path:
        images = manifest.source.images_of(part) or 0
        identity = hashlib.sha256(f"{kind}/{seed}/{images}/{part}".encode()).hexdigest()[:16]
        folder = cache_folder("data") / f"{name}-{generator.version}-{identity}"
        if not folder.is_dir():
            try:
                with whole_folder(folder) as fresh:
                    generator.write(kind, seed, part, images, fresh)
            except OSError as error:
                if not folder.is_dir():  # else another process was faster
                    raise VlmEdgeError(
                        f"{folder}: can't write the generated data: {reason(error)}",
                        "free some space, or set XDG_CACHE_HOME to a folder that you can write",
                    ) from error
        return folder

    return OpenSource(part_of, read_image_folder, "remove that folder, and it is generated anew")
