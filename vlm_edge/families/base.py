"""The contract of a family: one architecture's model, its components, attention sites and processing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError
from torch import Tensor, nn

from vlm_edge.checked import first_fault
from vlm_edge.checkpoints.config import read_config
from vlm_edge.checkpoints.processors import (
    checked_pictures,
    load_image_processor,
    pixel_settings,
    processed_pixels,
    read_image_processing,
    read_text_processing,
)
from vlm_edge.errors import VlmEdgeError, short
from vlm_edge.processing.manifest import Generation, ImageProcessing, PipelineKind, Prompt, TextProcessing


class AttentionRole(StrEnum):
    """The source of an attention module's keys: its own input, another one, an image behind a tanh gate, or text and
    image together, each of which attends to both."""

    SELF = "self"
    CROSS = "cross"
    GATED_CROSS = "gated_cross"
    JOINT = "joint"


@dataclass(frozen=True)
class AttentionSite:
    """One multi-head attention module, by its parts, so that surgery needs no knowledge of the architecture.

    ``module`` holds ``num_heads_attr`` (and whatever names ``all_head_size_attr``) to be updated after heads are
    removed. ``q``, ``k``, ``v`` are Linear (width -> heads x head_dim; key and value widths may differ from the
    query's), ``out`` is Linear (heads x head_dim -> width), or GPT-2's Conv1D. Where one layer computes several of
    ``q``, ``k`` and ``v``, one behind the other, they are the same. Paths are dotted names from the model's root.

    Where several ``queries`` read one key (grouped-query attention), a head is a key with all of them: ``num_heads``
    counts keys, ``q`` and ``out`` have queries x head_dim features a head, ``num_heads_attr`` counts queries and
    ``num_key_heads_attr`` keys.
    """

    path: str
    role: AttentionRole
    component: str
    num_heads: int
    head_dim: int
    q: str
    k: str
    v: str
    out: str
    num_heads_attr: str
    all_head_size_attr: str | None = None
    queries: int = 1
    num_key_heads_attr: str | None = None


@dataclass(frozen=True)
class ComponentExport:
    """One component as the exporter needs it.

    ``module(*example.values())`` returns a tuple of tensors in the order of ``outputs``. ``example`` maps input names
    to tensors, with different sizes for every dynamic dimension (and none of size 0 or 1). ``dynamic`` maps input
    names to {axis: dimension name}; ``output_shapes`` gives each output's shape in those names. ``may_be_empty`` names
    the dimensions that can be 0 (a cache at the first step); the others start at 1.
    """

    module: nn.Module
    example: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    output_shapes: Mapping[str, tuple[int | str, ...]]
    may_be_empty: frozenset[str] = frozenset()


def _naming_the_checkpoint(read: Callable[[Any, Path], Any]) -> Callable[[Any, Path], Any]:
    """``read``, a family's method that takes a checkpoint; values of a wrong type or size become a VlmEdgeError."""

    @wraps(read)
    def checked(self: Any, checkpoint: Path) -> Any:
        try:
            return read(self, checkpoint)
        except ValidationError as error:
            reason = first_fault(error)
        except (StrictDataclassError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {short(str(error))}"
        raise VlmEdgeError(
            f"{checkpoint}: {read.__name__.replace('_', ' ')}: a setting has a value that can't be: {reason}",
            "compare the folder's JSON files with those of the model's page",
        )

    return checked


class Family(ABC):
    """One architecture. ``model`` is always the transformers model that :func:`load_checkpoint` gives.

    What a family does not say has a default: transformers' own config, model and image processor; and nothing
    generated, compared, classified or pruned. Training needs no more than :meth:`components`.
    """

    name: str
    architectures: tuple[str, ...]
    """Class names in config.json's ``architectures`` that this family loads."""
    pipeline: PipelineKind
    """The runtime pipeline that composes the components."""
    config_class: Any
    model_class: Any
    image_processor_class: Any
    """transformers' PIL class, for folders that name none."""
    vision_tower_path: str
    """Dotted name of the vision tower's module, which stays as it is while the rest recovers."""
    student_fits = False
    """Whether a MobileViT can replace the vision tower: of it, the last hidden state alone is read."""
    inner_generate = False
    """Whether ``generate`` is called on a model inside, which sees nothing of generation_config.json."""

    def __init_subclass__(cls, **settings: Any) -> None:
        """Make every method that reads a checkpoint's settings name the checkpoint where they can't be."""
        super().__init_subclass__(**settings)
        for name in ("image_processing", "text_processing", "generation", "prompt"):
            setattr(cls, name, _naming_the_checkpoint(getattr(cls, name)))

    def takes(self, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint of :attr:`architectures` with this config.json is this family's."""
        return True

    def config(self, checkpoint: Path) -> Any:
        """The checkpoint's transformers config, with its defaults filled in."""
        return self.config_class.from_dict(read_config(checkpoint))

    def build(self, config: Mapping[str, Any]) -> Any:
        """The transformers model from its config.json, weights not loaded, attention spelled out."""
        return self.model_class(self.config_class.from_dict(dict(config), attn_implementation="eager"))

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The checkpoint's tensors under the names of :meth:`build`'s model, where files name them differently."""
        return state

    def image_processing(self, checkpoint: Path) -> ImageProcessing:
        """The checkpoint's image processor, as data; by default images of the vision tower's one size."""
        tower = getattr(self.config(checkpoint), "vision_config", None)
        return read_image_processing(checkpoint, self.image_processor_class, tower)

    def image_processor(self, checkpoint: Path) -> Any:
        """transformers' image processor of the checkpoint, where the family can do what one class of it does, no other.

        Raises:
            VlmEdgeError: the checkpoint names another class.
        """
        return load_image_processor(checkpoint, self.image_processor_class, alike=(self.image_processor_class,))

    def processing_of(self, checkpoint: Path, processor: Any, **sizes: Any) -> ImageProcessing:
        """:class:`ImageProcessing` of ``sizes`` and the processor's pixel settings, held to the processor on images."""
        spec = ImageProcessing(**sizes, **pixel_settings(processor))
        return checked_pictures(checkpoint, processor, spec, self.processed)

    def processed(self, processor: Any, image: Any, spec: ImageProcessing) -> Mapping[str, Any]:
        """The vision encoder's inputs that transformers' image processor makes of one image (PIL, or RGB uint8)."""
        return processed_pixels(processor, image, spec)

    def text_processing(self, checkpoint: Path) -> TextProcessing | None:
        """The checkpoint's tokenizer, as data; None where config.json has no ``text_config``: no text is read."""
        text = getattr(self.config(checkpoint), "text_config", None)
        return None if text is None else read_text_processing(checkpoint, text.max_position_embeddings)

    def generation(self, checkpoint: Path) -> Generation | None:
        """The settings that answers are decoded with; None where nothing is generated."""
        return None

    def prompt(self, checkpoint: Path) -> Prompt | None:
        """The text around a question about images; None for families that take the question as it is."""
        return None

    def labels(self, model: Any) -> tuple[str, ...] | None:
        """The classes of the model's own head, in the order of its logits; None where there is none."""
        return None

    def logit_scale(self, model: Any) -> float | None:
        """The factor of dual encoders' cosines; None for the others."""
        return None

    def logit_bias(self, model: Any) -> float | None:
        """The number added to scaled cosines where each pair is judged for itself (SigLIP); None for the others."""
        return None

    @abstractmethod
    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        """Every component, in the order that the pipeline runs them."""

    @abstractmethod
    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """The answer of transformers' own code, which the composed graphs are held to.

        Families that generate: ``model.generate``'s result for one row, called with ``settings``. Dual encoders:
        scaled similarities (images, texts). Others: the embeddings or logits (rows, n).

        Args:
            model: the model.
            inputs: pixel_values, input_ids and attention_mask, and what else the image becomes; families without text
                get no ids.
            settings: of ``generate`` or ``forward``.
        """

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """Every attention module whose query, key and value are Linears of their own, in the model's order."""
        return []
