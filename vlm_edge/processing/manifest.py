"""The pipeline manifest: everything but the weights that the runtime needs, as data (``manifest.json``).

A GRAPHS and an ENGINE artifact hold the same manifest; ``engine`` is filled in by the compile stage. Every number has
bounds, since a manifest may come from anywhere: none can ask for more memory or time than a model on a device has.
:mod:`vlm_edge.processing.sealing` ties it to the files beside it.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from vlm_edge.checked import first_fault
from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.bounds import (
    MOST_ELEMENTS,
    MOST_NEW_TOKENS,
    MOST_PIXELS,
    MOST_TILES,
    MOST_TOKENS,
    FileName,
    Frozen,
    Layout,
    Name,
    Options,
    Piece,
    Pixels,
    Positive,
    Sha256,
    Shift,
    Side,
    Template,
    Threads,
    Token,
    Tokens,
)
from vlm_edge.processing.sealing import (
    AGAIN,
    MANIFEST_NAME,
    listed_files,
    manifest_digest,
    parse_manifest,
    require_plain_files,
    require_unaltered,
)

PipelineKind = Literal["vqa", "answer_head", "captioning", "generate", "dual_encoder", "embedding", "matching"]
"""Kinds of pipeline; ``vlm_edge.runtime.pipeline`` has the class of each."""
FORMAT: Literal[2] = 2


class TensorSpec(Frozen):
    """One input or output of a component. A string in ``shape`` is the name of a dynamic dimension."""

    dtype: Literal["float32", "float16", "int64", "int32", "bool", "uint8", "int8"]
    shape: tuple[Annotated[int, Field(ge=0)] | Name, ...] = Field(max_length=8)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if math.prod(size for size in self.shape if isinstance(size, int)) > MOST_ELEMENTS:
            raise ValueError(f"more than {MOST_ELEMENTS} elements")
        return self


class Component(Frozen):
    """One graph: its file (relative to the manifest) and its tensors, in order.

    ``threads`` is set where the compile stage found fewer to be enough than the engine's, ``options`` where it chose
    others for this component than the engine's.
    """

    file: FileName
    inputs: dict[Name, TensorSpec] = Field(min_length=1, max_length=1024)
    outputs: dict[Name, TensorSpec] = Field(min_length=1, max_length=1024)
    threads: Threads | None = None
    options: Options = Field(default={})


class AnyResTiles(Frozen):
    """LLaVA-NeXT: the image scaled into the best of ``resolutions`` (height, width), padded with black and cut into
    tiles, after one tile that shows all of it. ``grid`` is the number of patches along a tile's side."""

    kind: Literal["anyres"] = "anyres"
    resolutions: tuple[tuple[Side, Side], ...] = Field(min_length=1, max_length=1024)
    grid: Side


class SplitTiles(Frozen):
    """Idefics3: the longest edge scaled to ``longest_edge``, both sides to multiples of a tile, cut into tiles, and
    after them one tile that shows all of it. Without ``split`` there is only that one.

    The texts stand for a tile (``{row}`` and ``{column}`` count from 1), the end of a row, the tile that shows all,
    and an image of one tile; ``{image}`` is where a tile's image tokens go.
    """

    kind: Literal["split"] = "split"
    longest_edge: Side
    split: bool = True
    tile_text: Piece
    row_end: Piece
    whole_text: Piece
    single_text: Piece


class PatchGrid(Frozen):
    """Qwen2-VL: an image at its own size, as near as multiples of ``patch`` x ``merge`` pixels and an area between
    ``min_pixels`` and ``max_pixels`` allow. It becomes rows of patches, each ``frames`` times (videos share the
    model), in groups of ``merge`` x ``merge`` that become one token. ``window``: groups along a side of the windows
    that attention is kept to, where it is (Qwen2.5-VL); the groups then come window by window."""

    kind: Literal["patches"] = "patches"
    patch: int = Field(ge=1, le=1024)
    merge: int = Field(ge=1, le=64)
    frames: int = Field(ge=1, le=16)
    min_pixels: Pixels
    max_pixels: Pixels
    window: Side | None = None


class CanvasTiles(Frozen):
    """Mllama: the image in the corner of the best fitting canvas of at most ``max_tiles`` tiles; an image always has
    that many, and says which of them show it."""

    kind: Literal["canvas"] = "canvas"
    max_tiles: int = Field(ge=1, le=64)


class PatchRows(Frozen):
    """ViLT, SigLIP 2 NaFlex: an image near its own aspect as a list of patches of ``patch`` x ``patch`` pixels, row by
    row. With ``max_patches`` it is scaled, up too, to as many as fit into that number, and the list filled up to it;
    else its size is what ``shortest_edge``, ``longest_edge`` and ``multiple_of`` say, and a batch is filled up to its
    longest list."""

    kind: Literal["rows"] = "rows"
    patch: int = Field(ge=1, le=1024)
    max_patches: int | None = Field(default=None, ge=1, le=65536)


Tiles = Annotated[AnyResTiles | SplitTiles | PatchGrid | CanvasTiles | PatchRows, Field(discriminator="kind")]


Transparency = Literal["white", "drop", "refuse"]
"""Treatment of an image's alpha: composited on white, ignored, or refused where a pixel is not opaque."""


class ImageProcessing(Frozen):
    """RGB image -> ``pixel_values`` (batch, 3, height, width) float32, as transformers' PIL image processors do.

    Order: resize (PIL filter number in ``resample``), centre crop, rescale by ``rescale_factor``, (x - mean) / std,
    and, with ``bgr``, blue before red.
    With ``shortest_edge`` the shorter side is resized to it keeping the aspect; else ``resize_to`` (height, width) or
    ``height`` x ``width`` exactly. With ``longest_edge`` the longer side is at most that, and with ``multiple_of`` both
    sides are rounded down to multiples of it (BridgeTower).
    ``height`` and ``width`` are always the final size. With ``tiles`` an image becomes several of that size; with a
    :class:`PatchGrid` or :class:`PatchRows` images have sizes of their own, and ``height`` and ``width`` are one.
    ``processor`` is transformers' class, and ``transparency`` what it does before all that.
    """

    height: Side
    width: Side
    shortest_edge: Side | None = None
    longest_edge: Side | None = None
    multiple_of: Side | None = None
    resize_to: tuple[Side, Side] | None = None
    resample: int = Field(default=3, ge=0, le=5)
    center_crop: bool = False
    rescale_factor: Positive = 1 / 255
    mean: tuple[Shift, Shift, Shift] = (0.0, 0.0, 0.0)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    bgr: bool = False
    processor: str | None = Field(default=None, max_length=100)
    transparency: Transparency = "refuse"
    tiles: Tiles | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse sizes, and numbers of tiles, that no model has and that would fill the memory."""
        sizes = [(self.height, self.width), self.resize_to or (1, 1)]
        tiles = 1
        if isinstance(self.tiles, AnyResTiles):
            sizes += self.tiles.resolutions
            tiles = max(math.ceil(h / self.height) * math.ceil(w / self.width) for h, w in self.tiles.resolutions)
        elif isinstance(self.tiles, SplitTiles):
            tiles = math.ceil(self.tiles.longest_edge / self.height) * math.ceil(self.tiles.longest_edge / self.width)
        elif isinstance(self.tiles, CanvasTiles):
            tiles = self.tiles.max_tiles
        elif isinstance(self.tiles, PatchRows):
            sizes.append((self.tiles.patch**2, self.tiles.max_patches or 1))
        if max(height * width for height, width in sizes) > MOST_PIXELS:
            raise ValueError(f"images of more than {MOST_PIXELS} pixels")
        if tiles > MOST_TILES or tiles * self.height * self.width > 4 * MOST_PIXELS:
            raise ValueError(f"{tiles} tiles of {self.height}x{self.width} an image")
        return self


class TextProcessing(Frozen):
    """Text -> ``input_ids`` and ``attention_mask`` (batch, tokens) int64, through ``tokenizer.json`` (tokenizers).

    ``pad_to``: always pad to this many tokens (fixed shapes are faster), or None to pad to the longest of a batch.
    ``tasks``: prompts by the name that stands for them; ``{input}`` is the rest of the text (Florence-2).
    ``dropped_token_ids``: what decoding leaves out; default: every special token.
    ``lowercase``: texts are lower-cased before ``tokenizer.json`` sees them (SigLIP 2, whose published file doesn't).
    ``mask_padding``: False for models that read padding as text (SigLIP); ``attention_mask`` is then 1 everywhere.
    """

    tokenizer: FileName = "tokenizer.json"
    pad_token_id: Token
    max_length: int = Field(ge=1, le=MOST_TOKENS)
    pad_to: int | None = Field(default=None, ge=1, le=4096)
    padding_side: Literal["right", "left"] = "right"
    lowercase: bool = False
    mask_padding: bool = True
    tasks: dict[Piece, Template] = Field(default={}, max_length=256)
    dropped_token_ids: Tokens | None = None


class Prompt(Frozen):
    """The text that a language model goes on from, made of a question and images.

    ``layouts[n]`` is the text for n images: the model's chat template for one turn, or what it was trained on.
    ``{question}`` is where the question goes (without the spaces around it if ``strip_question``), and each
    ``image_token`` stands for one image: for ``image_tokens`` tokens (of a tile, where there are tiles), whose
    embeddings are the image's. ``special_tokens``: whether the tokenizer adds its own, such as the first.

    ``image_reach``: with gated cross-attention, which images a token sees: those of the last ``group`` before it that
    no text parts, or the ``last`` one alone. ``instruction``: the tokenizer of a connector that reads the question.
    """

    layouts: tuple[Template, ...] = Field(min_length=1, max_length=256)
    image_token: Name
    image_token_id: Token
    image_tokens: int = Field(ge=0, le=65536)
    strip_question: bool = False
    special_tokens: bool = True
    image_reach: Literal["group", "last"] | None = None
    instruction: TextProcessing | None = None


NEW, PAST, TOTAL = "new", "past", "past + new"
"""A decoder's dimensions: the tokens that it is given, those that its cache holds, and both."""
CROSS_PREFIX = "cross_key_values."
"""Prefix of the names of cross-attention's keys and values."""
SELF_MASK = "decoder_attention_mask"
"""Input of a decoder with cross-attention: which tokens of the cache count, and the new ones."""


class Generation(Frozen):
    """Greedy decoding of the ``decoder`` component.

    The decoder is one graph for prefill and step: ``input_ids`` (batch, new), ``past_key_values.{layer}.key|value``
    (batch, heads, past, head_dim) with past = 0 at the first call, and the cross-attention's cache
    ``cross_key_values.{layer}.key|value`` that ``text_encoder`` puts out; it gives ``logits`` (batch, new, vocab), or
    those of the last token alone, and ``present.{layer}.key|value``. Where there is such a cross-attention,
    ``decoder_attention_mask`` (batch, past + new) int64 is 1 for tokens and 0 for places of the cache that hold none.
    A ``generate`` pipeline starts from its prompt, not ``start_token_id``; ``other_eos_token_ids`` end an answer, too.

    An answer ends after ``max_new_tokens``, or where it makes ``max_length`` tokens with its prompt. ``positions``: the
    size of the decoder's table of positions; None where they are computed. The rest is generation_config.json's, which
    :class:`vlm_edge.runtime.greedy.TokenRules` follows. ``first_token_id`` is forced behind the start token,
    ``last_token_id`` where an answer reaches its longest, and no ``no_repeat_ngram`` tokens in a row come twice
    (0: no such rule). ``not_followed``: the checkpoint's further settings, by name, as JSON.
    """

    start_token_id: Token
    eos_token_id: Token
    pad_token_id: Token
    max_new_tokens: int = Field(ge=1, le=MOST_NEW_TOKENS)
    first_token_id: Token | None = None
    last_token_id: Token | None = None
    no_repeat_ngram: int = Field(default=0, ge=0, le=1024)
    other_eos_token_ids: Tokens = Field(default=(), max_length=256)
    max_length: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    positions: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    min_length: int = Field(default=0, ge=0, le=MOST_TOKENS)
    min_new_tokens: int = Field(default=0, ge=0, le=MOST_NEW_TOKENS)
    repetition_penalty: Positive = 1.0
    bad_words_ids: tuple[Annotated[Tokens, Field(min_length=1, max_length=256)], ...] = Field(
        default=(), max_length=65536
    )
    suppress_tokens: Tokens = ()
    begin_suppress_tokens: Tokens = ()
    exponential_decay_length_penalty: tuple[Annotated[int, Field(ge=0, le=MOST_TOKENS)], Positive] | None = None
    not_followed: dict[Name, Layout] = Field(default={}, max_length=256)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every token that ends an answer."""
        return frozenset((self.eos_token_id, *self.other_eos_token_ids))

    @property
    def named_tokens(self) -> frozenset[int]:
        """Every token that the settings force, forbid or wait for."""
        forced = (token for token in (self.first_token_id, self.last_token_id) if token is not None)
        words = (word[-1] for word in self.bad_words_ids)
        return self.eos_token_ids | {*forced, *words, *self.suppress_tokens, *self.begin_suppress_tokens}


class EngineInfo(Frozen):
    """The compile stage's choices for the target; ``options`` are the engine's own (session options, plan flags)."""

    name: Name
    version: Name
    threads: Threads
    options: Options = Field(default={})


class PipelineManifest(Frozen):
    """``manifest.json``. ``pipeline`` names the class in ``vlm_edge.runtime`` that composes the components.

    ``text`` is None where nothing is read or written. ``labels`` are the classes of a ``logits`` output, in order (of
    an ``answer_head`` pipeline the answers that it knows).
    Dual encoders: a match's logit is ``logit_scale`` x cosine (+ ``logit_bias`` where each pair is judged for itself,
    with a sigmoid, as in SigLIP).

    ``files``: the sha256 of every other file of the folder; ``digest``: that of the manifest itself, over the canonical
    JSON (sorted keys, no spaces, ASCII) of everything else in it. :func:`write_manifest` fills them in.
    """

    format: Literal[2] = FORMAT
    family: Name
    pipeline: PipelineKind
    components: dict[Name, Component] = Field(min_length=1, max_length=16)
    image: ImageProcessing
    text: TextProcessing | None = None
    prompt: Prompt | None = None
    generation: Generation | None = None
    labels: tuple[Layout, ...] | None = Field(default=None, max_length=1 << 20)
    logit_scale: Positive | None = None
    logit_bias: Shift | None = None
    precision: dict[Name, Name] = Field(default={}, max_length=16)
    engine: EngineInfo | None = None
    files: dict[FileName, Sha256] = Field(default={}, max_length=4096)
    digest: Sha256 | None = None


def read_manifest(folder: Path, *, verify: bool = True) -> PipelineManifest:
    """Read ``folder/manifest.json``, and see that it and every file beside it are what was written.

    Args:
        folder: a GRAPHS, ENGINE or BUNDLE folder.
        verify: False reads a folder that was altered, too. Its names and numbers are held to their bounds even then.

    Raises:
        VlmEdgeError: it is missing, not JSON, of another format, or out of bounds; or one of the files is missing, a
            link, or altered.
    """
    path = folder / MANIFEST_NAME
    content = parse_manifest(path)
    if content.get("format") != FORMAT:
        raise VlmEdgeError(
            f"{path}: format {str(content.get('format'))[:20]!r}; this version reads {FORMAT}",
            "write the folder again with this version: `vlm-edge run RECIPE`, or `vlm-edge export MODEL -o FOLDER`",
        )
    try:
        manifest = PipelineManifest.model_validate(content)
    except ValidationError as error:
        raise VlmEdgeError(f"{path}: {first_fault(error, PipelineManifest)}", AGAIN) from error
    require_plain_files(folder, {*used_files(manifest), *manifest.files})
    if verify:
        if unlisted := [name for name in used_files(manifest) if name not in manifest.files]:
            raise VlmEdgeError(f"{path}: files: {unlisted[0]} is missing, so it can't be verified", AGAIN)
        require_unaltered(folder, content, manifest.files)
    return manifest


def used_files(manifest: PipelineManifest) -> list[str]:
    """The files that a manifest names by itself: the components' and the tokenizers'."""
    texts = [manifest.text, manifest.prompt.instruction if manifest.prompt else None]
    return [row.file for row in manifest.components.values()] + [text.tokenizer for text in texts if text]


def write_manifest(folder: Path, manifest: PipelineManifest) -> None:
    """Write ``folder/manifest.json`` with stable key order and the digests of all that lies beside it, so that it has
    to be written last.

    Raises:
        VlmEdgeError: a value is out of bounds, so that :func:`read_manifest` would refuse it.
    """
    content = manifest.model_dump(mode="json") | {"files": listed_files(folder), "digest": None}
    content["digest"] = manifest_digest(content)
    try:
        PipelineManifest.model_validate(content)
    except ValidationError as error:
        raise VlmEdgeError(f"{folder / MANIFEST_NAME}: {first_fault(error)}", "no device runs such a model") from error
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def copy_side_files(source: Path, out: Path, manifest: PipelineManifest) -> None:
    """Copy what the manifest lists beside the graphs and their weights (``decoder.onnx.data``): the tokenizer."""
    graphs = [component.file for component in manifest.components.values()]
    for name in manifest.files:
        if not any(name == graph or name.startswith(f"{graph}.") for graph in graphs):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, out / name)
