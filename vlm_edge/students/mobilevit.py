"""MobileViT as a vision tower: Mehta & Rastegari 2021, arXiv:2110.02178, as transformers' MobileViTModel.

The model code of BLIP and CLIP reads ``last_hidden_state`` and ``pooler_output`` from its tower; the student gives
both, in the teacher's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import MobileViTConfig, MobileViTModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlm_edge.checked import first_fault
from vlm_edge.errors import VlmEdgeError
from vlm_edge.students import StudentConfig, StudentSpec, student_spec
from vlm_edge.students.mobilevit_patches import use_plain_patches

EXPANSION = 4
"""MobileViTConfig wants the width of the classifier's expansion, which is not built: 4 x the last feature map's."""


@dataclass(frozen=True)
class TowerConfig:
    """The settings that the surrounding model reads of a vision tower's config."""

    hidden_size: int
    image_size: int


class MobileViTStudent(nn.Module):
    """pixel_values (images, 3, height, width) -> tokens (images, 1 + rows x columns, hidden).

    Token 0 is the mean of the feature map (where a ViT has its class token), then its cells, row by row; each is
    projected to the teacher's hidden size and layer-normalised, as a ViT's output is. ``pooler_output`` is token 0.
    """

    main_input_name = "pixel_values"  # which transformers' encoder-decoders ask of their encoder

    def __init__(self, spec: StudentSpec, config: StudentConfig, teacher_hidden: int) -> None:
        super().__init__()
        self.config = TowerConfig(teacher_hidden, config.image_height)
        self.image_shape = (3, config.image_height, config.image_width)
        channels = spec.neck_hidden_sizes[-1]
        self.backbone = MobileViTModel(
            MobileViTConfig(
                image_size=(config.image_height, config.image_width),
                hidden_sizes=spec.hidden_sizes,
                neck_hidden_sizes=(*spec.neck_hidden_sizes, EXPANSION * channels),
                expand_ratio=spec.expand_ratio,
                output_stride=config.output_stride,
                patch_size=config.patch_size,
                hidden_act=config.activation,
                hidden_dropout_prob=0.0,
            ),
            expand_output=False,
        )
        initialise_convolutions(self.backbone)
        use_plain_patches(self.backbone)
        self.projection = nn.Linear(channels, teacher_hidden)
        self.post_layernorm = nn.LayerNorm(teacher_hidden)

    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,  # noqa: ARG002
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """``interpolate_pos_encoding`` is accepted for the surrounding model's sake: there are no positions here.

        Raises:
            ValueError: the images are not of the size that the student was made for.
        """
        if tuple(pixel_values.shape[1:]) != self.image_shape:
            raise ValueError(f"images of shape {tuple(pixel_values.shape[1:])}; the student takes {self.image_shape}")
        features: Tensor = self.backbone(pixel_values).last_hidden_state
        cells = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)
        hidden = self.post_layernorm(self.projection(tokens))
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden[:, 0])


def build_vision_student(name: str, config: Mapping[str, Any], teacher_hidden: int) -> MobileViTStudent:
    """A freshly initialised student; its tokens have ``teacher_hidden`` channels. Draws from torch's random state.

    Raises:
        VlmEdgeError: the student is unknown, or ``config`` is no :class:`StudentConfig`.
    """
    spec = student_spec(name)
    try:
        checked = StudentConfig.model_validate(dict(config))
    except ValidationError as error:
        raise VlmEdgeError(f"student {name}: {first_fault(error, StudentConfig, within='config')}") from error
    return MobileViTStudent(spec, checked, teacher_hidden)


def initialise_convolutions(model: nn.Module) -> None:
    """Kaiming-normal convolutions (He et al. 2015, arXiv:1502.01852, eq. 10) and BatchNorm weights of 1, in place.

    transformers draws both with a standard deviation of 0.02: activations then fade below BatchNorm's epsilon within a
    few layers, and the model does not learn.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
