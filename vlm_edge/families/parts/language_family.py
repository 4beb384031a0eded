"""What families of language models that see images share: a vision encoder, a connector, and a decoder with a cache.

The decoder's graph holds the embedding table as well as the output layer, so that a table that is both is stored once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vlm_edge.checkpoints.config import read_config
from vlm_edge.checkpoints.generation_settings import read_settings
from vlm_edge.checkpoints.pretrained import load_tokenizer
from vlm_edge.checkpoints.processors import read_text_processing
from vlm_edge.checkpoints.prompt import read_prompt
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.llm import Decoder, decoder_export, self_attention_sites
from vlm_edge.families.parts.tower_states import connector_export, tower_attention_sites, vision_encoder_export
from vlm_edge.processing.manifest import Generation, ImageProcessing, PipelineKind, Prompt, TextProcessing
from vlm_edge.processing.picture import Picture


class LanguageFamily(Family):
    """A vision encoder and a connector whose embeddings stand among the text's, and a language model of the Llama line.

    Families say where their parts are, what one image (or tile) becomes, and how images are cut.
    """

    pipeline: PipelineKind = "generate"
    config_class: Any
    model_class: Any
    image_processor_class: Any
    vision_tower_path = "model.vision_tower"
    language_model_path = "model.language_model"
    image_token = "<image>"
    image_reach: Literal["group", "last"] | None = None
    """Which images a token sees through cross-attention; see :class:`Prompt`."""
    fallback_prompt: tuple[str, ...] | None = None
    """Layouts for 0, 1, .. images where the checkpoint has no chat template."""
    fallback_special_tokens = True
    """Whether the tokenizer adds its own to those."""
    fallback_strip = False
    """Whether spaces around the question are left out of those."""

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """With attention spelled out; self-attention that shares no keys is told how many heads it has, for pruning."""
        model: nn.Module = self.model_class(self.config_class.from_dict(dict(config), attn_implementation="eager"))
        for site in self.attention_sites(model):
            module: Any = model.get_submodule(site.path)
            setattr(module, site.num_heads_attr, site.num_heads * site.queries)
        return model

    def config(self, checkpoint: Path) -> Any:
        """The checkpoint's configuration, with its defaults filled in."""
        return self.config_class.from_dict(read_config(checkpoint))

    def image_token_id(self, config: Any) -> int:
        return int(config.image_token_id)

    def token_id(self, checkpoint: Path) -> int:
        """The image token's id."""
        return self.image_token_id(self.config(checkpoint))

    def fallback(self, checkpoint: Path) -> tuple[str, ...] | None:
        """Layouts for 0, 1, .. images where the checkpoint has no chat template."""
        return self.fallback_prompt

    @abstractmethod
    def image_tokens(self, config: Any) -> int:
        """How many of the text's places one image takes (one tile, where there are tiles)."""

    @abstractmethod
    def vision_encoder(self, model: Any) -> nn.Module:
        """pixel_values (images, 3, height, width) -> image_features (images, tokens, hidden)."""

    @abstractmethod
    def connector(self, model: Any) -> nn.Module:
        """image_features -> image_embeds (images, image_tokens, width)."""

    def decoder(self, model: Any) -> nn.Module:
        """The language model: :class:`vlm_edge.families.parts.llm.Decoder`, or one of its kind."""
        language_model = model.get_submodule(self.language_model_path)
        return Decoder(language_model, model.get_output_embeddings(), self.image_token_id(model.config))

    def prompt(self, checkpoint: Path) -> Prompt | None:
        config = self.config(checkpoint)
        return read_prompt(
            checkpoint,
            image_token=self.image_token,
            image_token_id=self.token_id(checkpoint),
            image_tokens=self.image_tokens(config),
            fallback=self.fallback(checkpoint),
            fallback_special_tokens=self.fallback_special_tokens,
            fallback_strip=self.fallback_strip,
            image_reach=self.image_reach,
        )

    def text_processing(self, checkpoint: Path) -> TextProcessing:
        spec = read_text_processing(checkpoint, self.config(checkpoint).get_text_config().max_position_embeddings)
        tokenizer = load_tokenizer(checkpoint)
        if tokenizer.encode(self.image_token, add_special_tokens=False) != [self.token_id(checkpoint)]:
            raise VlmEdgeError(
                f"{checkpoint}: the tokenizer does not know {self.image_token!r} as the token that config.json says",
                "copy tokenizer.json and config.json from one source",
            )
        return spec

    def generation(self, checkpoint: Path) -> Generation | None:
        """As ``generate`` decodes greedily: generation_config.json's settings, else the language model's.

        Raises:
            VlmEdgeError: there is no end token, or a setting asks for what the runtime can't do.
        """
        config = self.config(checkpoint)
        settings, text = read_settings(checkpoint, config, inner=self.inner_generate), config.get_text_config()
        ends = settings.eos_token_ids or text.eos_token_id
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if not ends:
            raise VlmEdgeError(
                f"{checkpoint}: no eos_token_id, so no answer would end", "write it into generation_config.json"
            )
        pad = settings.pad_token_id if settings.pad_token_id is not None else text.pad_token_id
        return settings.generation(
            start=text.bos_token_id if text.bos_token_id is not None else ends[0],
            ends=ends,
            pad=ends[0] if pad is None else pad,
        )

    def components(self, model: nn.Module, image: ImageProcessing) -> dict[str, ComponentExport]:
        vision = vision_encoder_export(self.vision_encoder(model), image)
        features, more = vision.output_shapes["image_features"], self.connector_inputs(model)
        connector = connector_export(self.connector(model), features, more)
        width = int(connector.output_shapes["image_embeds"][-1])
        decoder = self.decoder_export(model, width)
        return {"vision_encoder": vision, "connector": connector, "decoder": decoder}

    def connector_inputs(self, model: Any) -> dict[str, tuple[Tensor, dict[int, str]]]:
        """What the connector is given beside image_features: {name: (example, names of its dynamic axes)}."""
        return {}

    def decoder_export(self, model: Any, width: int) -> ComponentExport:
        """The decoder's graph; ``width`` is that of the embeddings."""
        return decoder_export(self.decoder(model), model.get_output_embeddings().out_features, width)

    def attention_sites(self, model: nn.Module) -> list[AttentionSite]:
        """Self-attention of the tower and of the language model, where every query has a key of its own."""
        return [
            *tower_attention_sites(model, self.vision_tower_path),
            *self_attention_sites(model, self.language_model_path, "decoder"),
        ]

    def model_inputs(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What transformers' model calls the inputs that one request's pictures make."""
        pixels = np.concatenate([picture.inputs["pixel_values"] for picture in pictures])
        return {"pixel_values": torch.from_numpy(pixels)}

    def reference(
        self, model: nn.Module, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """``generate`` for one prompt; no ``pixel_values`` (0 images) where none is asked about. ``image_token_id`` is
        among the settings for families whose model has to be told where the images are."""
        vlm: Any = model
        settings.pop("image_token_id", None)
        images = {"pixel_values": pixel_values} if len(pixel_values) else {}
        with fused_attention(model.get_submodule(self.vision_tower_path)):
            return vlm.generate(input_ids=input_ids, attention_mask=attention_mask, **images, **settings)


@contextmanager
def fused_attention(tower: Any) -> Iterator[None]:
    """While open, a vision tower attends in torch's own kernel: transformers gives it all tiles at once, whose scores
    spelled out can take more memory than the model. Towers that don't know the kernel are left as they are."""
    if not getattr(tower, "_supports_sdpa", False):
        yield
        return
    before = tower.config._attn_implementation
    tower.config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        tower.config._attn_implementation = before
