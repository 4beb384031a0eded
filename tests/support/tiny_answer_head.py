"""A pipeline with an answer head of a few hand-written ONNX nodes, and the same in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from tiny_graphs import WORDS, component, parse, write_tokenizer

from vlm_edge.processing.images import preprocess
from vlm_edge.processing.manifest import ImageProcessing, PatchRows, PipelineManifest, TextProcessing, write_manifest

ANSWERS = ("red", "green", "blue", "yes", "no", "two dogs")
IMAGE = ImageProcessing(
    height=8, width=8, shortest_edge=8, longest_edge=16, multiple_of=4, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    tiles=PatchRows(patch=4),
)  # fmt: skip
FUSION = f"""<ir_version: 10, opset_import: ["" : 20]>
fusion (int64[batch, question_tokens] input_ids, int64[batch, question_tokens] attention_mask,
        float[batch, patches, 48] pixel_values, int64[batch, patches] pixel_attention_mask,
        int64[batch, 2] spatial_shapes) => (float[batch, {len(ANSWERS)}] logits) {{
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  words = Gather (word_embeddings, input_ids)
  mask = Cast <to = 1> (attention_mask)
  mask3 = Unsqueeze (mask, two)
  own = Mul (words, mask3)
  question = ReduceSum <keepdims = 0> (own, one)
  shown = Cast <to = 1> (pixel_attention_mask)
  shown3 = Unsqueeze (shown, two)
  colours = MatMul (pixel_values, patch_weight)
  biased = Add (colours, patch_bias)
  seen = Mul (biased, shown3)
  image = ReduceSum <keepdims = 0> (seen, one)
  grid = Cast <to = 1> (spatial_shapes)
  shape = MatMul (grid, grid_weight)
  product = Mul (question, image)
  state = Add (product, shape)
  logits = MatMul (state, head)
}}"""


def write_answer_head(folder: Path, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """A GRAPHS folder; returns its weights for :func:`logits`."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    shapes = {
        "word_embeddings": (len(WORDS), 3), "patch_weight": (48, 3), "patch_bias": (3,), "grid_weight": (2, 3),
        "head": (3, len(ANSWERS)),
    }  # fmt: skip
    weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = parse(FUSION, weights)
    onnx.save(model, folder / "fusion.onnx")
    write_tokenizer(folder)
    manifest = PipelineManifest(
        family="vilt",
        pipeline="answer_head",
        components={"fusion": component(model, "fusion.onnx")},
        image=IMAGE,
        text=TextProcessing(pad_token_id=0, max_length=10),
        labels=ANSWERS,
    )
    write_manifest(folder, manifest)
    return weights


def logits(weights: dict[str, NDArray[np.float32]], image: NDArray[np.uint8], question: str) -> NDArray[np.float32]:
    """(answers,), of an image whose sides are multiples of 4, the shorter one 8."""
    height, width = image.shape[:2]
    plain = IMAGE.model_copy(update={"height": height, "width": width, "tiles": None})
    pixels = preprocess([image], plain)[0].transpose(1, 2, 0)
    patches = [pixels[y : y + 4, x : x + 4].reshape(48) for y in range(0, height, 4) for x in range(0, width, 4)]
    seen = (np.array(patches) @ weights["patch_weight"] + weights["patch_bias"]).sum(axis=0)
    ids = [1, *(WORDS.index(word) for word in question.split()), 2]
    grid = np.array([height // 4, width // 4], np.float32) @ weights["grid_weight"]
    return np.asarray((weights["word_embeddings"][ids].sum(axis=0) * seen + grid) @ weights["head"])
