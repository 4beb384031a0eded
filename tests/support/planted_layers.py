"""A dual encoder that tells colours, in which one linear layer decides and is destroyed by INT8, though noise at the
outputs doesn't show it: what decides is 50 dB below dimensions that no answer depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser
from tiny_graphs import IMAGE, WORDS, component, save_image, write_tokenizer

from vlm_edge.core.artifact import Artifact, ArtifactKind, digest_folder
from vlm_edge.core.stage import TaskSpec
from vlm_edge.processing.manifest import PipelineManifest, TextProcessing, write_manifest

LABELS = ("red", "green", "blue")
HIDDEN, LOUD = 48, 45
WIDTH = LOUD + len(LABELS)
BAD = "decisive"
"""What the planted layer writes, and the end of its node's name."""

VISION = f"""<ir_version: 10, opset_import: ["" : 20]>
vision (float[images, 3, 8, 8] pixel_values) => (float[images, {WIDTH}] image_embeds) {{
  places = Constant <value_ints = [2, 3]> ()
  pooled = ReduceMean <keepdims = 0> (pixel_values, places)
  spread = MatMul (pooled, spread_weight)
  loud = MatMul (spread, loud_weight)
  active = Gelu (loud)
  louder = MatMul (active, louder_weight)
  square = Mul (pixel_values, pixel_values)
  all = Constant <value_ints = [1, 2, 3]> ()
  energy = ReduceMean <keepdims = 0> (square, all)
  one = Constant <value_ints = [1]> ()
  column = Unsqueeze (energy, one)
  outlier = Mul (column, thousand)
  wide = Concat <axis = 1> (spread, outlier)
  {BAD} = MatMul (wide, decisive_weight)
  joined = Concat <axis = 1> (louder, {BAD})
  image_embeds = LpNormalization <axis = -1, p = 2> (joined)
}}"""
TEXT = f"""<ir_version: 10, opset_import: ["" : 20]>
text (int64[texts, tokens] input_ids, int64[texts, tokens] attention_mask) => (float[texts, {WIDTH}] text_embeds) {{
  words = Gather (word_embeddings, input_ids)
  mixed = MatMul (words, mix)
  one = Constant <value_ints = [1]> ()
  sums = ReduceSum <keepdims = 0> (mixed, one)
  text_embeds = LpNormalization <axis = -1, p = 2> (sums)
}}"""


def vision_model(*, noisy: bool = False) -> onnx.ModelProto:
    """``noisy``: INT8 destroys what no answer depends on, too, and with it most of the output."""
    generator = np.random.default_rng(0)
    spread = generator.normal(size=(3, HIDDEN)) / 2
    loud = generator.normal(size=(HIDDEN, HIDDEN))
    louder = 12 * generator.normal(size=(HIDDEN, LOUD))
    if noisy:
        loud[:, :4] *= 1e4
        louder[:4] = 0
    return _model(
        VISION,
        {
            "spread_weight": spread,
            "loud_weight": loud,
            "louder_weight": louder,
            "thousand": np.array([1000.0]),
            "decisive_weight": np.concatenate([np.linalg.pinv(spread), np.zeros((1, 3))]),
        },
    )


def text_model(*, drowned: bool = False) -> onnx.ModelProto:
    """Each colour's word points at its dimension; ``drowned``: beside one too large for a row in INT8 to hold both."""
    table = np.zeros((64, WIDTH))
    for place, label in enumerate(LABELS):
        table[WORDS.index(label), LOUD + place] = 0.3 if drowned else 1.0
        table[WORDS.index(label), 0] = 100.0 if drowned else 0.0
    return _model(TEXT, {"word_embeddings": table, "mix": np.eye(WIDTH)})


def _model(text: str, values: dict[str, Any]) -> onnx.ModelProto:
    model: onnx.ModelProto = parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def write_planted(folder: Path, *, drowned: bool = False, noisy: bool = False) -> Artifact:
    """The graphs as the export stage leaves them."""
    folder.mkdir(parents=True)
    components = {}
    for name, model in (("vision_encoder", vision_model(noisy=noisy)), ("text_encoder", text_model(drowned=drowned))):
        onnx.save(model, folder / f"{name}.onnx")
        components[name] = component(model, f"{name}.onnx")
    write_tokenizer(folder)
    text = TextProcessing(pad_token_id=0, max_length=10)
    manifest = PipelineManifest(
        family="clip", pipeline="dual_encoder", components=components, image=IMAGE, text=text, logit_scale=10.0
    )
    write_manifest(folder, manifest)
    return Artifact(ArtifactKind.GRAPHS, digest_folder(folder), folder)


def write_colors(folder: Path, images: int, *, split: str = "train") -> TaskSpec:
    """Noisy colours to tell apart: 16 to calibrate on, all of them in ``split``, and 12 others to test on."""
    generator = np.random.default_rng(2)
    for part, count in (("train", images), ("test", 12)):
        (folder / "data" / part).mkdir(parents=True)
        rows = []
        for number in range(count):
            pixels = generator.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[..., number % 3] += 120
            save_image(folder / "data" / part / f"{number}.png", pixels)
            rows.append(json.dumps({"file_name": f"{number}.png", "label": LABELS[number % 3]}) + "\n")
        (folder / "data" / part / "metadata.jsonl").write_text("".join(rows))
    calibration = "{from: train, samples: 16, seed: 1}" if split == "train" else "{from: train}"
    train = "  train: {from: train, seed: 3}\n" if split == "train" else ""
    (folder / "colors.yaml").write_text(
        "name: colors\nkind: classification\nsource: {folder: data}\nlicence: MIT\n"
        f"labels: [{', '.join(LABELS)}]\nprompts: ['{{}}']\n"
        f"splits:\n  calibration: {calibration}\n{train}  test: {{from: test}}\n"
    )
    return TaskSpec(kind="classification", data=folder / "colors.yaml")
