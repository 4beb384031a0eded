"""Load a folder as a pipeline; the table of pipelines."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from vlm_edge.backends import REFERENCE, load_engine
from vlm_edge.backends.base import Engine
from vlm_edge.errors import VlmEdgeError
from vlm_edge.machine import usable_cpus
from vlm_edge.processing.manifest import PipelineKind, PipelineManifest, read_manifest
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.answer_head import AnswerHeadPipeline
from vlm_edge.runtime.capabilities import Pipeline
from vlm_edge.runtime.captioning import CaptioningPipeline
from vlm_edge.runtime.dual_encoder import DualEncoderPipeline
from vlm_edge.runtime.embedding import EmbeddingPipeline
from vlm_edge.runtime.generate import GeneratePipeline
from vlm_edge.runtime.matching import MatchingPipeline
from vlm_edge.runtime.vqa import VqaPipeline

PIPELINES: dict[PipelineKind, type[Pipeline]] = {
    "vqa": VqaPipeline,
    "answer_head": AnswerHeadPipeline,
    "captioning": CaptioningPipeline,
    "generate": GeneratePipeline,
    "dual_encoder": DualEncoderPipeline,
    "embedding": EmbeddingPipeline,
    "matching": MatchingPipeline,
}


def load_pipeline(
    folder: Path | str, *, engine: str | None = None, threads: int | None = None, verify: bool = True
) -> Pipeline:
    """Load a GRAPHS, ENGINE or BUNDLE folder.

    Args:
        folder: where ``manifest.json`` lies.
        engine: default: the manifest's, or onnxruntime for graphs that were not compiled. Graphs run on onnxruntime
            or openvino as they are; a compiled folder runs on the engine that it was compiled for.
        threads: most intra-op threads of a component; default: the manifest's, or the CPUs that this process may use.
        verify: hold every file to the digest that the manifest has of it, before it is given to an engine. False
            answers from altered files, too, and logs a warning.

    Raises:
        VlmEdgeError: the manifest can't be read, a file is missing, altered or corrupt, or the engine can't run here.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, verify=verify)
    if not verify:
        logging.getLogger(__name__).warning("%s: not verified: its answers may not be those that were measured", folder)
    return build_pipeline(manifest, load_engines(folder, manifest, engine=engine, threads=threads), folder)


def load_engines(
    folder: Path, manifest: PipelineManifest, *, engine: str | None = None, threads: int | None = None
) -> dict[str, Engine]:
    """Every component's engine by its name; arguments and errors as :func:`load_pipeline`."""
    info = manifest.engine
    name = engine or (info.name if info else REFERENCE)
    if info and name != info.name:
        raise VlmEdgeError(
            f"{folder}: compiled for {info.name}, so {name} can't run it", f"leave engine out, or compile it for {name}"
        )
    limit = threads or (info.threads if info else usable_cpus())
    return {
        key: load_engine(
            name,
            folder / component.file,
            component,
            min(limit, component.threads or limit),
            info.options if info else None,
        )
        for key, component in manifest.components.items()
    }


def build_pipeline(manifest: PipelineManifest, engines: Mapping[str, Engine], folder: Path) -> Pipeline:
    """The pipeline that ``manifest.pipeline`` names, on engines that are already loaded; the tokenizer of ``folder``.

    Raises:
        VlmEdgeError: the tokenizer's file or a component is missing.
    """
    tokenizer = Tokenizer(folder, manifest.text) if manifest.text else None
    return PIPELINES[manifest.pipeline](manifest, engines, tokenizer)
