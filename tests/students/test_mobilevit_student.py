"""The MobileViT student as a vision tower: against transformers' own model, inside BLIP and CLIP, and as ONNX."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from learning import see
from transformers import MobileViTConfig, MobileViTModel

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.students import STUDENTS, StudentConfig
from vlm_edge.students.mobilevit import MobileViTStudent, build_vision_student
from vlm_edge.surgery.replay import apply_surgery
from vlm_edge.training.table import learner_of

SIZE = {"image_height": 32, "image_width": 48}


def build(name: str = "mobilevit-xxs", hidden: int = 24, seed: int = 0, **config: Any) -> MobileViTStudent:
    torch.manual_seed(seed)
    return build_vision_student(name, {**SIZE, "output_stride": 8, **config}, hidden).eval()


def images(count: int = 2, height: int = 32, width: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, 3, height, width), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "millions"), [("mobilevit-xxs", 0.9), ("mobilevit-xs", 1.9), ("mobilevit-s", 4.8)])
def test_students_have_the_published_sizes_and_give_tokens_in_the_teachers_width(name: str, millions: float) -> None:
    student = build(name)
    output = student(images())
    assert output.last_hidden_state.shape == (2, 1 + 4 * 6, 24)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert torch.equal(output[0], output.last_hidden_state)
    parameters = sum(parameter.numel() for parameter in student.backbone.parameters()) / 1e6
    assert parameters == pytest.approx(millions, abs=0.05)
    assert f"{millions}M" in STUDENTS[name].summary


@pytest.mark.parametrize(("stride", "patch"), [(32, 2), (16, 1), (8, 4)])
def test_tokens_are_the_mean_and_the_cells_of_transformers_mobilevit(stride: int, patch: int) -> None:
    student = build(output_stride=stride, patch_size=patch)
    spec = STUDENTS["mobilevit-xxs"]
    reference = MobileViTModel(
        MobileViTConfig(
            hidden_sizes=list(spec.hidden_sizes),
            neck_hidden_sizes=[*spec.neck_hidden_sizes, 320],
            expand_ratio=2.0,
            output_stride=stride,
            patch_size=patch,
        ),
        expand_output=False,
    ).eval()
    reference.load_state_dict(student.backbone.state_dict())
    with torch.no_grad():
        tokens = student(images()).last_hidden_state.double().numpy()
        plane = reference(images()).last_hidden_state.double().numpy()
    rows, columns = StudentConfig(**SIZE, output_stride=stride).grid
    assert plane.shape == (2, 80, rows, columns)
    weight, bias = (tensor.detach().double().numpy() for tensor in student.projection.parameters())
    cells = [plane.mean(axis=(2, 3)), *(plane[:, :, row, column] for row in range(rows) for column in range(columns))]
    projected = np.stack([cell @ weight.T + bias for cell in cells], axis=1)
    centred = projected - projected.mean(-1, keepdims=True)
    np.testing.assert_allclose(tokens, centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5), atol=2e-5)


def test_a_fresh_student_tells_images_apart_and_passes_gradients_to_its_stem() -> None:
    """With transformers' own initialisation both are lost below BatchNorm's epsilon."""
    student = build().train()
    tokens = student(images(8)).last_hidden_state
    assert tokens.detach().std(dim=0).mean().item() > 0.3
    tokens[:, 1:, 0].var().backward()
    gradient = student.backbone.conv_stem.convolution.weight.grad
    assert gradient is not None
    assert gradient.abs().max().item() > 1e-3


def test_the_same_seed_gives_the_same_student() -> None:
    first, again, other = (build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 48, 32\); the student takes \(3, 32, 48\)"):
        build()(images(height=48, width=32))


def test_the_exported_student_equals_torch_at_any_batch_and_holds_no_batch_norm(tmp_path: Path) -> None:
    student = build(output_stride=16, patch_size=2)
    path = tmp_path / "student.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            student,
            (images(),),
            path,
            dynamo=True,
            verbose=False,
            opset_version=20,
            external_data=False,
            input_names=["pixel_values"],
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("images")}},
        )
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert operators["BatchNormalization"] == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        with torch.no_grad():
            wanted = student(images(count, seed=count)).last_hidden_state.numpy()
        found = session.run(None, {"pixel_values": images(count, seed=count).numpy()})[0]
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_blip_answers_with_a_student_for_its_vision_tower(tiny_blip: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_blip)
    config = {"image_height": 32, "image_width": 32, "output_stride": 8}
    operation = {"op": "replace_vision_tower", "student": "mobilevit-xxs", "config": config}
    apply_surgery(loaded.model, loaded.family, [operation], tmp_path)
    blip: Any = loaded.model.eval()
    assert isinstance(blip.vision_model, MobileViTStudent)
    question = torch.tensor([[2, 20, 21, 3], [2, 22, 23, 3]])
    pixels = images(2, width=32)
    answers = blip.generate(
        input_ids=question, pixel_values=pixels, attention_mask=torch.ones_like(question), max_new_tokens=3
    )
    assert answers.shape[0] == 2
    whole = blip(input_ids=question, pixel_values=pixels, labels=question)
    features = blip.vision_model(pixel_values=pixels).last_hidden_state
    assert torch.equal(whole.image_embeds, features)
    assert features.shape == (2, 17, blip.config.vision_config.hidden_size)


def test_clip_embeds_images_with_a_student_for_its_vision_tower(tiny_clip: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_clip)
    config = {"image_height": 32, "image_width": 32, "output_stride": 8}
    operation = {"op": "replace_vision_tower", "student": "mobilevit-xxs", "config": config}
    apply_surgery(loaded.model, loaded.family, [operation], tmp_path)
    clip: Any = loaded.model.eval()
    with torch.no_grad():
        embeds = see(learner_of(loaded), images(2, width=32))
        whole = clip(input_ids=torch.tensor([[1, 5, 2]]), pixel_values=images(2, width=32)).image_embeds
    torch.testing.assert_close(embeds, whole)


def test_unknown_students_and_configs_are_named_with_near_matches() -> None:
    with pytest.raises(VlmEdgeError, match=r"unknown student 'mobilevit-xss'.*mobilevit-xxs"):
        build("mobilevit-xss")
    with pytest.raises(VlmEdgeError, match=r"student mobilevit-xs: config\.output_stride: .*8, 16 or 32"):
        build("mobilevit-xs", output_stride=64)
