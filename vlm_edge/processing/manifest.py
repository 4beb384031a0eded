"""The pipeline manifest: everything but the weights that the runtime needs, as data (``manifest.json``).

A GRAPHS artifact and an ENGINE artifact hold the same manifest; ``engine`` is filled in by the compile stage.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlm_edge.errors import VlmEdgeError

MANIFEST_NAME = "manifest.json"
PipelineKind = Literal["vqa", "answer_head", "captioning", "generate", "dual_encoder", "embedding", "matching"]
"""What a pipeline does with its components; ``vlm_edge.runtime.pipeline`` has the class of each."""
FORMAT: Literal[1] = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One input or output of a component. A string in ``shape`` is the name of a dynamic dimension."""

    dtype: Literal["float32", "float16", "int64", "int32", "bool", "uint8", "int8"]
    shape: tuple[int | str, ...]


class Component(_Frozen):
    """One graph: its file (relative to the manifest) and its tensors, in order.

    ``threads`` is set where the compile stage found fewer to be enough than the engine's, ``options`` where it chose
    others for this component than the engine's.
    """

    file: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    threads: int | None = Field(default=None, ge=1)
    options: dict[str, str | int | float | bool] = {}


class AnyResTiles(_Frozen):
    """LLaVA-NeXT: the image scaled into the best of ``resolutions`` (height, width), padded with black and cut into
    tiles, after one tile that shows all of it. ``grid`` is the number of patches along a tile's side."""

    kind: Literal["anyres"] = "anyres"
    resolutions: tuple[tuple[int, int], ...]
    grid: int


class SplitTiles(_Frozen):
    """Idefics3: the longest edge scaled to ``longest_edge``, both sides to multiples of a tile, cut into tiles, and
    after them one tile that shows all of it. Without ``split`` there is only that one.

    The texts stand for a tile (``{row}`` and ``{column}`` count from 1), the end of a row, the tile that shows all,
    and an image of one tile; ``{image}`` is where a tile's image tokens go.
    """

    kind: Literal["split"] = "split"
    longest_edge: int
    split: bool = True
    tile_text: str
    row_end: str
    whole_text: str
    single_text: str


class PatchGrid(_Frozen):
    """Qwen2-VL: an image at its own size, as near as multiples of ``patch`` x ``merge`` pixels and an area between
    ``min_pixels`` and ``max_pixels`` allow. It becomes rows of patches, each ``frames`` times (videos share the
    model), in groups of ``merge`` x ``merge`` that become one token. ``window``: groups along a side of the windows
    that attention is kept to, where it is (Qwen2.5-VL); the groups then come window by window."""

    kind: Literal["patches"] = "patches"
    patch: int
    merge: int
    frames: int
    min_pixels: int
    max_pixels: int
    window: int | None = None


class CanvasTiles(_Frozen):
    """Mllama: the image in the corner of the best fitting canvas of at most ``max_tiles`` tiles; an image always has
    that many, and says which of them show it."""

    kind: Literal["canvas"] = "canvas"
    max_tiles: int


class PatchRows(_Frozen):
    """ViLT, SigLIP 2 NaFlex: an image near its own aspect as a list of patches of ``patch`` x ``patch`` pixels, row by
    row. With ``max_patches`` it is scaled, up too, to as many as fit into that number, and the list filled up to it;
    else its size is what ``shortest_edge``, ``longest_edge`` and ``multiple_of`` say, and a batch is filled up to its
    longest list."""

    kind: Literal["rows"] = "rows"
    patch: int = Field(ge=1)
    max_patches: int | None = Field(default=None, ge=1)


Tiles = Annotated[AnyResTiles | SplitTiles | PatchGrid | CanvasTiles | PatchRows, Field(discriminator="kind")]


Transparency = Literal["white", "drop", "refuse"]
"""What becomes of an image's alpha: composited on white, ignored, or refused where a pixel is not opaque."""


class ImageProcessing(_Frozen):
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

    height: int
    width: int
    shortest_edge: int | None = None
    longest_edge: int | None = None
    multiple_of: int | None = None
    resize_to: tuple[int, int] | None = None
    resample: int = 3
    center_crop: bool = False
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False
    processor: str | None = Field(default=None, max_length=100)
    transparency: Transparency = "refuse"
    tiles: Tiles | None = None


class TextProcessing(_Frozen):
    """Text -> ``input_ids`` and ``attention_mask`` (batch, tokens) int64, through ``tokenizer.json`` (tokenizers).

    ``pad_to``: always pad to this many tokens (fixed shapes are faster), or None to pad to the longest of a batch.
    ``tasks``: what short forms of a prompt stand for; ``{input}`` is what else the text holds (Florence-2).
    ``dropped_token_ids``: what decoding leaves out; default: every special token.
    ``lowercase``: texts are lower-cased before ``tokenizer.json`` sees them (SigLIP 2, whose published file doesn't).
    ``mask_padding``: False for models that read padding as text (SigLIP); ``attention_mask`` is then 1 everywhere.
    """

    tokenizer: str = "tokenizer.json"
    pad_token_id: int
    max_length: int
    pad_to: int | None = None
    padding_side: Literal["right", "left"] = "right"
    lowercase: bool = False
    mask_padding: bool = True
    tasks: dict[str, str] = {}
    dropped_token_ids: tuple[int, ...] | None = None


class Prompt(_Frozen):
    """How a question about images becomes the text that a language model goes on from.

    ``layouts[n]`` is the text for n images: the model's chat template for one turn, or what it was trained on.
    ``{question}`` is where the question goes (without the spaces around it if ``strip_question``), and each
    ``image_token`` stands for one image: for ``image_tokens`` tokens (of a tile, where there are tiles), whose
    embeddings are the image's. ``special_tokens``: whether the tokenizer adds its own, such as the first.

    ``image_reach``: with gated cross-attention, which images a token sees: those of the last ``group`` before it that
    no text parts, or the ``last`` one alone. ``instruction``: how the connector reads the question, where it does.
    """

    layouts: tuple[str, ...] = Field(min_length=1)
    image_token: str
    image_token_id: int
    image_tokens: int
    strip_question: bool = False
    special_tokens: bool = True
    image_reach: Literal["group", "last"] | None = None
    instruction: TextProcessing | None = None


NEW, PAST, TOTAL = "new", "past", "past + new"
"""A decoder's dimensions: the tokens that it is given, those that its cache holds, and both."""
CROSS_PREFIX = "cross_key_values."
"""What the names of cross-attention's keys and values begin with."""
SELF_MASK = "decoder_attention_mask"
"""Input of a decoder with cross-attention: which tokens of the cache count, and the new ones."""


class Generation(_Frozen):
    """Greedy decoding of the ``decoder`` component.

    The decoder is one graph for prefill and step: ``input_ids`` (batch, new), ``past_key_values.{layer}.key|value``
    (batch, heads, past, head_dim) with past = 0 at the first call, and the cross-attention's cache
    ``cross_key_values.{layer}.key|value`` that ``text_encoder`` puts out; it gives ``logits`` (batch, new, vocab), or
    those of the last token alone, and ``present.{layer}.key|value``. Where there is such a cross-attention,
    ``decoder_attention_mask`` (batch, past + new) int64 is 1 for tokens and 0 for places of the cache that hold none.
    A ``generate`` pipeline starts from its prompt, not from ``start_token_id``. ``other_eos_token_ids`` end an answer
    as ``eos_token_id`` does.

    An answer ends after ``max_new_tokens``, or where it makes ``max_length`` tokens with its prompt. The other settings
    are those of generation_config.json, followed as transformers' logits processors do: see
    :class:`vlm_edge.runtime.token_rules.TokenRules`. ``first_token_id`` is forced behind the start token,
    ``last_token_id`` where an answer reaches its longest, and no ``no_repeat_ngram`` tokens in a row come twice (0: no
    such rule). ``not_followed``: what the checkpoint's settings ask for beyond that, by name, as JSON.
    """

    start_token_id: int
    eos_token_id: int
    pad_token_id: int
    max_new_tokens: int = Field(ge=1)
    first_token_id: int | None = None
    last_token_id: int | None = None
    no_repeat_ngram: int = Field(default=0, ge=0)
    other_eos_token_ids: tuple[int, ...] = ()
    max_length: int | None = Field(default=None, ge=1)
    min_length: int = Field(default=0, ge=0)
    min_new_tokens: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    not_followed: dict[str, str] = {}

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every token that ends an answer."""
        return frozenset((self.eos_token_id, *self.other_eos_token_ids))


class EngineInfo(_Frozen):
    """What the compile stage chose for the target; ``options`` are the engine's own (session options, plan flags)."""

    name: Literal["onnxruntime", "openvino", "tensorrt"]
    version: str
    threads: int
    options: dict[str, str | int | float | bool] = {}


class PipelineManifest(_Frozen):
    """``manifest.json``. ``pipeline`` names the class in ``vlm_edge.runtime`` that composes the components.

    ``text`` is None where nothing is read or written. ``labels`` are the classes of a ``logits`` output, in order (of
    an ``answer_head`` pipeline the answers that it knows).
    Dual encoders: a match's logit is ``logit_scale`` x cosine (+ ``logit_bias`` where each pair is judged for itself,
    with a sigmoid, as in SigLIP).
    """

    format: Literal[1] = FORMAT
    family: str
    pipeline: PipelineKind
    components: dict[str, Component]
    image: ImageProcessing
    text: TextProcessing | None = None
    prompt: Prompt | None = None
    generation: Generation | None = None
    labels: tuple[str, ...] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    precision: dict[str, str] = {}
    engine: EngineInfo | None = None


def read_manifest(folder: Path) -> PipelineManifest:
    """Read ``folder/manifest.json``.

    Raises:
        VlmEdgeError: it is missing, not JSON, of another format, or names a component file that is not there.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise VlmEdgeError(
            f"{folder}: no {MANIFEST_NAME}, so this is no exported model",
            "give the folder that `vlm-edge export` or `vlm-edge compile` wrote",
        )
    try:
        manifest = PipelineManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise VlmEdgeError(
            f"{path}: {place}: {first['msg']}", "write it again with this version's `vlm-edge export`"
        ) from error
    for name, component in manifest.components.items():
        if not (folder / component.file).is_file():
            raise VlmEdgeError(f"{path}: components.{name}: no file {component.file}", "export or compile it again")
    return manifest


def write_manifest(folder: Path, manifest: PipelineManifest) -> None:
    """Write ``folder/manifest.json`` with stable key order."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def copy_side_files(source: Path, out: Path, manifest: PipelineManifest) -> None:
    """Copy everything beside the graphs and the manifest, such as the tokenizer.

    A graph's weights may lie beside it in files named after it (``decoder.onnx.data``): they belong to the graph.
    """
    graphs = {component.file for component in manifest.components.values()}
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        belongs_to_graph = any(name == graph or name.startswith(f"{graph}.") for graph in graphs)
        if path.is_file() and name != MANIFEST_NAME and not belongs_to_graph:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
