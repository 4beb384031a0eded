"""Build kits: folders from which a device builds its own engines, and checks them.

A kit is a folder of graphs with its manifest, and beside them ``kit.json``, golden runs (``golden/COMPONENT/N.npz``),
the engine's build scripts and ``SHA256SUMS``. The manifest has the sha256 of every other file, and is read first.
"""

from __future__ import annotations

import io
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from vlm_edge.backends import backend, resolve
from vlm_edge.backends.base import Array, Engine
from vlm_edge.backends.checks import check_feed
from vlm_edge.backends.reference import Run, check_component
from vlm_edge.checked import first_fault
from vlm_edge.digests import file_digests
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.bounds import MOST_ELEMENTS, FileName, Frozen, Layout, Name, Sha256, Threads
from vlm_edge.processing.manifest import Component, PipelineManifest, read_manifest
from vlm_edge.processing.sealing import parse_manifest, require_plain_files

KIT_NAME, SUMS_NAME, GOLDEN_FOLDER, TIMING_CACHE = "kit.json", "SHA256SUMS", "golden", "timing.cache"
MOST_GOLDEN_BYTES = 1 << 30
"""Of the arrays of one golden run."""
MOST_SUMS_BYTES = 1 << 22
AGAIN = "copy the whole kit again from where it was made"

_SUMS = TypeAdapter(dict[FileName, Sha256])
Shape = Annotated[tuple[Annotated[int, Field(ge=0, le=MOST_ELEMENTS)], ...], Field(max_length=8)]
Profile = dict[Name, tuple[Shape, Shape, Shape]]
"""The smallest, the usual and the largest shape of each input with a dynamic dimension."""


class KitComponent(Frozen):
    """``golden``: its golden runs; those of an ``integer`` graph also have outputs in float arithmetic."""

    golden: tuple[FileName, ...] = Field(min_length=1, max_length=1024)
    integer: bool
    profile: Profile = Field(default={}, max_length=1024)


class Kit(Frozen):
    """``kit.json``. ``reason`` says why no engine was built where the kit was made; ``timing_cache`` is the file that
    the scripts keep the builder's measurements in; ``emulated_by`` the engine that ran the graphs there, if one can."""

    format: Literal[1] = 1
    engine: Name
    target: Name
    threads: Threads
    reason: Layout
    emulated_by: Name | None
    timing_cache: FileName = TIMING_CACHE
    components: dict[Name, KitComponent] = Field(min_length=1, max_length=16)


class KitForm:
    """An engine's part in a kit, and the building of one. This one is for engines that load ONNX files as they are."""

    def check(self, graph: Path) -> None:
        """Nothing, if the engine takes the graph.

        Raises:
            VlmEdgeError: it breaks a rule of the engine's.
        """

    def profile(self, component: Component, manifest: PipelineManifest, max_batch: int) -> Profile:  # noqa: ARG002
        """The shapes that an engine is built for."""
        return {}

    def scripts(self, kit: Kit, manifest: PipelineManifest) -> dict[str, str]:  # noqa: ARG002
        """Name -> text of scripts that build without vlm-edge."""
        return {}

    def build(self, graph: Path, component: Component, profile: Profile, out: Path) -> Component:  # noqa: ARG002
        """Write what the engine loads into ``out``; the component's row in the manifest.

        Raises:
            VlmEdgeError: the engine's builder can't run here, or refuses the graph.
        """
        names = [file.name for file in graph.parent.glob(f"{graph.name}*")]
        require_plain_files(graph.parent, names)
        for name in names:
            shutil.copyfile(graph.parent / name, out / name)
        return component


def kit_form(engine: str) -> KitForm:
    """The form of an engine's kits.

    Raises:
        VlmEdgeError: there is no engine of that name.
    """
    named = backend(engine).kit
    form: KitForm = resolve(named)() if named else KitForm()
    return form


def read_kit(folder: Path) -> tuple[Kit, PipelineManifest]:
    """A kit's own file and its manifest, every file of the folder held to the manifest's digest first.

    Raises:
        VlmEdgeError: a file is missing, a link, altered or not listed, or a value is out of bounds.
    """
    manifest = read_manifest(folder)
    path = folder / KIT_NAME
    if KIT_NAME not in manifest.files:
        raise VlmEdgeError(
            f"{folder}: no build kit: its manifest lists no {KIT_NAME}",
            "`vlm-edge compile` makes one for a target with `kit: true`; graphs are compiled without --on-device",
        )
    content = parse_manifest(path)
    try:
        kit = Kit.model_validate(content)
    except ValidationError as error:
        raise VlmEdgeError(f"{path}: {first_fault(error, Kit)}", AGAIN) from error
    if other := set(kit.components) ^ set(manifest.components):
        raise VlmEdgeError(f"{path}: component {min(other)!r} is the kit's or the manifest's alone", AGAIN)
    listed = (name for part in kit.components.values() for name in part.golden)
    if unlisted := [name for name in listed if name not in manifest.files]:
        raise VlmEdgeError(f"{path}: the manifest lists no {unlisted[0]}, so it can't be verified", AGAIN)
    return kit, manifest


class GoldenRuns(Sequence[Run]):
    """Golden runs of one component: inputs and the graph's outputs, one run in memory at a time."""

    def __init__(self, folder: Path, part: KitComponent, component: Component) -> None:
        self._folder, self._part = folder, part
        self._inputs, self._outputs = component.inputs, component.outputs

    def __len__(self) -> int:
        return len(self._part.golden)

    def __getitem__(self, position: Any) -> Any:
        return self._sides(position)[:2]

    def in_float(self) -> Iterator[dict[str, Array]]:
        """The outputs in float arithmetic of each run; of a graph without integers, its own."""
        return (self._sides(position)[-1] for position in range(len(self)))

    def _sides(self, position: int) -> list[dict[str, Array]]:
        path = self._folder / self._part.golden[position]
        arrays = read_arrays(path)
        sides = "012" if self._part.integer else "01"
        parts = [{name[2:]: array for name, array in arrays.items() if name[:2] == f"{side}/"} for side in sides]
        for part, specs in zip(parts, (self._inputs, self._outputs, self._outputs), strict=False):
            check_feed(part, specs, str(path))
        return parts


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an ``.npz`` file without pickled objects, no more than :data:`MOST_GOLDEN_BYTES` together.

    Raises:
        VlmEdgeError: it is no such file, is damaged, or its arrays are larger, or larger than their bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
            if total > MOST_GOLDEN_BYTES:
                raise VlmEdgeError(f"{path}: {total:,} bytes of arrays; at most {MOST_GOLDEN_BYTES:,} are read", AGAIN)
            return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in archive.infolist()}
    except (OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise VlmEdgeError(f"{path}: no arrays in numpy's format: {error}", AGAIN) from error


def _array(content: bytes) -> Array:
    """An array in numpy's format, version 1; nothing is allocated that its bytes don't hold."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not of version 1 of the format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def check_golden(name: str, engine: Engine, golden: GoldenRuns) -> dict[str, Any]:
    """Hold an engine against golden runs by every output's cosine, at least :data:`.reference.MIN_COSINE`.

    A float graph has no other bound: GPUs multiply float32 matrices in TF32.

    Raises:
        VlmEdgeError: it strays, or the runs are not the component's.
    """
    hint = "see that the device has the engine's newest version, and report this with the kit"
    return check_component(name, engine, golden, golden.in_float, hint)


def write_sums(folder: Path, names: Iterable[str], file: str = SUMS_NAME) -> None:
    """Write the digests of a folder's files in the form that ``sha256sum -c`` reads."""
    digests = file_digests(folder, sorted(names))
    (folder / file).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()), encoding="utf-8")


def require_sums(folder: Path, file: str) -> set[str]:
    """The names that a file of sums lists, each a plain file of the folder with the digest that it has there.

    Raises:
        VlmEdgeError: the sums are missing or damaged, or a file is missing, a link or altered.
    """
    require_plain_files(folder, [file])
    path = folder / file
    if path.stat().st_size > MOST_SUMS_BYTES:
        raise VlmEdgeError(f"{path}: more than {MOST_SUMS_BYTES:,} bytes", AGAIN)
    try:
        rows = [line.split("  ", 1)[::-1] for line in path.read_text(encoding="utf-8").splitlines()]
        sums = _SUMS.validate_python(dict(rows))
    except ValueError as error:
        raise VlmEdgeError(f"{path}: not a list of sha256 digests and plain relative names", AGAIN) from error
    require_plain_files(folder, sums)
    for name, digest in file_digests(folder, sums, AGAIN).items():
        if sums[name] != digest:
            raise VlmEdgeError(f"{folder / name}: it was altered since {file} was written", AGAIN)
    return set(sums)
