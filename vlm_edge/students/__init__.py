"""Small vision towers that take the place of a model's own, and the table of them. Importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vlm_edge.errors import VlmEdgeError
from vlm_edge.names import near


@dataclass(frozen=True)
class StudentSpec:
    """Widths of one MobileViT: Mehta & Rastegari 2021, arXiv:2110.02178, table 4 and its appendix.

    ``hidden_sizes`` are the widths of the three transformers, ``neck_hidden_sizes`` the channels of the feature maps
    from the stem to the last block; the classifier's 1x1 expansion is not used.
    """

    name: str
    hidden_sizes: tuple[int, int, int]
    neck_hidden_sizes: tuple[int, int, int, int, int, int]
    expand_ratio: float
    summary: str


STUDENTS: dict[str, StudentSpec] = {
    spec.name: spec
    for spec in (
        StudentSpec("mobilevit-xxs", (64, 80, 96), (16, 16, 24, 48, 64, 80), 2.0, "0.9M parameters"),
        StudentSpec("mobilevit-xs", (96, 120, 144), (16, 32, 48, 64, 80, 96), 4.0, "1.9M parameters"),
        StudentSpec("mobilevit-s", (144, 192, 240), (16, 32, 64, 96, 128, 160), 4.0, "4.8M parameters"),
    )
}


class StudentConfig(BaseModel):
    """Settings of a student beside its widths; kept in ``surgery.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_height: int = Field(ge=16, le=4096)
    image_width: int = Field(ge=16, le=4096)
    output_stride: Literal[8, 16, 32] = Field(
        default=16, description="pixels of the image per cell of the last feature map, along each side"
    )
    patch_size: Literal[1, 2, 4] = Field(
        default=2, description="MobileViT's patch: each transformer attends among the pixels at one place of a patch"
    )
    activation: Literal["silu", "relu", "gelu"] = "silu"

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the student's image tokens."""
        return -(-self.image_height // self.output_stride), -(-self.image_width // self.output_stride)


def student_spec(name: str) -> StudentSpec:
    """A row of :data:`STUDENTS`.

    Raises:
        VlmEdgeError: there is none of this name; the message lists near matches.
    """
    if name not in STUDENTS:
        raise VlmEdgeError(f"unknown student {name!r}; {near(name, STUDENTS)}")
    return STUDENTS[name]
