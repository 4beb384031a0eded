"""Pipelines of a few hand-written ONNX nodes, with the component names of the real ones and a numpy model beside them.

Small enough to load in milliseconds; wrong caches, masks, shapes or names change their answers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vlm_edge.processing.images import preprocess
from vlm_edge.processing.manifest import (
    Component,
    Generation,
    ImageProcessing,
    PipelineManifest,
    TensorSpec,
    TextProcessing,
    write_manifest,
)

WORDS = ["[PAD]", "[CLS]", "[SEP]", "what", "color", "is", "it", "red", "green", "blue", "yes", "no"]
SIZE, HEADS, DIM = 8, 2, 3
IMAGE = ImageProcessing(height=SIZE, width=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
GENERATION = Generation(start_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=6)

VISION = f"""<ir_version: 10, opset_import: ["" : 20]>
vision (float[images, 3, {SIZE}, {SIZE}] pixel_values) => (float[images, 4, 3] image_features) {{
  halves = Constant <value_ints = [0, 3, 4, -1]> ()
  flat = Reshape (pixel_values, halves)
  axes = Constant <value_ints = [3]> ()
  means = ReduceMean <keepdims = 0> (flat, axes)
  image_features = Transpose <perm = [0, 2, 1]> (means)
}}"""

TEXT_ENCODER = f"""<ir_version: 10, opset_import: ["" : 20]>
text (int64[batch, question_tokens] input_ids, int64[batch, question_tokens] attention_mask,
      float[batch, 4, 3] image_features)
  => (float[batch, {HEADS}, question_tokens, {DIM}] cross_key_values.0.key,
      float[batch, {HEADS}, question_tokens, {DIM}] cross_key_values.0.value) {{
  one = Constant <value_ints = [1]> ()
  image = ReduceMean <keepdims = 1> (image_features, one)
  words = Gather (word_embeddings, input_ids)
  states = Mul (words, image)
  heads = Constant <value_ints = [0, 0, {HEADS}, {DIM}]> ()
  keys = MatMul (states, key_weight)
  keys_split = Reshape (keys, heads)
  cross_key_values.0.key = Transpose <perm = [0, 2, 1, 3]> (keys_split)
  values = MatMul (states, value_weight)
  values_split = Reshape (values, heads)
  cross_key_values.0.value = Transpose <perm = [0, 2, 1, 3]> (values_split)
}}"""

DECODER = f"""<ir_version: 10, opset_import: ["" : 20]>
decoder (int64[batch, new] input_ids, int64[batch, question_tokens] attention_mask,
         float[batch, {HEADS}, question_tokens, {DIM}] cross_key_values.0.key,
         float[batch, {HEADS}, question_tokens, {DIM}] cross_key_values.0.value,
         float[batch, {HEADS}, past, {DIM}] past_key_values.0.key,
         float[batch, {HEADS}, past, {DIM}] past_key_values.0.value)
  => (float[batch, new, {len(WORDS)}] logits, float[batch, {HEADS}, total, {DIM}] present.0.key,
      float[batch, {HEADS}, total, {DIM}] present.0.value) {{
  words = Gather (token_embeddings, input_ids)
  heads = Constant <value_ints = [0, 0, {HEADS}, {DIM}]> ()
  split = Reshape (words, heads)
  fresh = Transpose <perm = [0, 2, 1, 3]> (split)
  present.0.key = Concat <axis = 2> (past_key_values.0.key, fresh)
  present.0.value = Concat <axis = 2> (past_key_values.0.value, fresh)
  two = Constant <value_ints = [2]> ()
  keys = ReduceSum <keepdims = 0> (present.0.key, two)
  values = ReduceMean <keepdims = 0> (present.0.value, two)
  own = Mul (keys, values)
  one_three = Constant <value_ints = [1, 3]> ()
  mask = Cast <to = 1> (attention_mask)
  mask4 = Unsqueeze (mask, one_three)
  question = Mul (cross_key_values.0.key, cross_key_values.0.value)
  masked = Mul (question, mask4)
  seen = ReduceSum <keepdims = 0> (masked, two)
  state = Add (own, seen)
  row = Constant <value_ints = [0, 1, {HEADS * DIM}]> ()
  state_row = Reshape (state, row)
  logits = MatMul (state_row, head)
}}"""


def random_weights(seed: int) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    width = HEADS * DIM
    shapes = {
        "word_embeddings": (len(WORDS), 3),
        "key_weight": (3, width),
        "value_weight": (3, width),
        "token_embeddings": (len(WORDS), width),
        "head": (width, len(WORDS)),
    }
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def parse(text: str, weights: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """The model of ``text``, with those of ``weights`` that it names as initializers.

    The text format knows no name with a dot in it, so dots are put in afterwards.
    """
    model = parser.parse_model(text.replace(".0.", "_0_"))
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("_0_", ".0.")
    for node in model.graph.node:
        node.input[:] = [name.replace("_0_", ".0.") for name in node.input]
        node.output[:] = [name.replace("_0_", ".0.") for name in node.output]
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in weights.items() if name in used
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def component(model: onnx.ModelProto, file: str) -> Component:
    """The manifest's row of a model, read off its graph."""

    def specs(values: list[onnx.ValueInfoProto]) -> dict[str, TensorSpec]:
        found = {}
        for value in values:
            tensor = value.type.tensor_type
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
            found[value.name] = TensorSpec.model_validate({"dtype": dtype, "shape": shape})
        return found

    return Component(file=file, inputs=specs(model.graph.input), outputs=specs(model.graph.output))


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="no"))
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def write_vqa(folder: Path, *, seed: int = 0, pad_to: int | None = None) -> dict[str, NDArray[np.float32]]:
    """A GRAPHS folder of a VQA pipeline; returns its weights for :func:`vqa_answer`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = random_weights(seed)
    components = {}
    for name, text in (("vision_encoder", VISION), ("text_encoder", TEXT_ENCODER), ("decoder", DECODER)):
        model = parse(text, weights)
        onnx.save(model, folder / f"{name}.onnx")
        components[name] = component(model, f"{name}.onnx")
    write_tokenizer(folder)
    manifest = PipelineManifest(
        family="blip-vqa",
        pipeline="vqa",
        components=components,
        image=IMAGE,
        text=TextProcessing(pad_token_id=0, max_length=10, pad_to=pad_to),
        generation=GENERATION,
    )
    write_manifest(folder, manifest)
    return weights


def vqa_answer(weights: dict[str, NDArray[np.float32]], image: NDArray[np.uint8], question: str) -> list[int]:
    """Greedy answer ids in plain numpy, without a cache, without padding."""
    pixels = preprocess([image], IMAGE)[0]
    means = pixels.mean(axis=(1, 2))
    ids = [1, *(WORDS.index(word) for word in question.split()), 2]
    states = weights["word_embeddings"][ids] * means
    seen = ((states @ weights["key_weight"]) * (states @ weights["value_weight"])).sum(axis=0)
    tokens = [GENERATION.start_token_id]
    while len(tokens) <= GENERATION.max_new_tokens:
        own = weights["token_embeddings"][tokens]
        chosen = int(np.argmax((own.sum(axis=0) * own.mean(axis=0) + seen) @ weights["head"]))
        if chosen == GENERATION.eos_token_id:
            break
        tokens.append(chosen)
    return tokens[1:]


DUAL_VISION = f"""<ir_version: 10, opset_import: ["" : 20]>
vision (float[images, 3, {SIZE}, {SIZE}] pixel_values) => (float[images, 3] image_embeds) {{
  axes = Constant <value_ints = [2, 3]> ()
  means = ReduceMean <keepdims = 0> (pixel_values, axes)
  image_embeds = LpNormalization <axis = -1, p = 2> (means)
}}"""

DUAL_TEXT = """<ir_version: 10, opset_import: ["" : 20]>
text (int64[texts, tokens] input_ids, int64[texts, tokens] attention_mask) => (float[texts, 3] text_embeds) {
  words = Gather (word_embeddings, input_ids)
  mask = Cast <to = 1> (attention_mask)
  two = Constant <value_ints = [2]> ()
  mask3 = Unsqueeze (mask, two)
  masked = Mul (words, mask3)
  one = Constant <value_ints = [1]> ()
  sums = ReduceSum <keepdims = 0> (masked, one)
  text_embeds = LpNormalization <axis = -1, p = 2> (sums)
}"""


def write_dual_encoder(folder: Path, *, logit_scale: float = 10.0) -> dict[str, NDArray[np.float32]]:
    """A GRAPHS folder of a dual encoder; returns its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = random_weights(3)
    components = {}
    for name, text in (("vision_encoder", DUAL_VISION), ("text_encoder", DUAL_TEXT)):
        model = parse(text, weights)
        onnx.save(model, folder / f"{name}.onnx")
        components[name] = component(model, f"{name}.onnx")
    write_tokenizer(folder)
    manifest = PipelineManifest(
        family="clip",
        pipeline="dual_encoder",
        components=components,
        image=IMAGE,
        text=TextProcessing(pad_token_id=0, max_length=10),
        logit_scale=logit_scale,
    )
    write_manifest(folder, manifest)
    return weights


def random_images(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """RGB images of the pipelines' size, each around its own colour."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 256, (count, 1, 1, 3))
    noise = generator.integers(-20, 21, (count, SIZE, SIZE, 3))
    return list(np.clip(colours + noise, 0, 255).astype(np.uint8))


def save_image(path: Path, pixels: NDArray[np.uint8]) -> Path:
    Image.fromarray(pixels).save(path)
    return path
