"""A language model that sees images: a vision encoder, a connector, and a decoder with a cache.

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

from vlm_edge.checkpoints.chat_template import Fallback, read_prompt
from vlm_edge.checkpoints.generation_settings import read_settings
from vlm_edge.checkpoints.pretrained import load_tokenizer
from vlm_edge.checkpoints.processors import read_text_processing
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionSite, ComponentExport, Family
from vlm_edge.families.parts.attention_sites import named_sites
from vlm_edge.families.parts.component import Inputs, component, image_features_like, random_pixels, rows_component
from vlm_edge.families.parts.llm import Decoder, language_decoder_export
from vlm_edge.processing.manifest import Generation, ImageProcessing, PipelineKind, Prompt, TextProcessing
from vlm_edge.processing.picture import Picture


class LanguageFamily(Family):
    """A vision encoder and a connector whose embeddings stand among the text's, and a language model of the Llama line.

    Families say where their parts are, what one image (or tile) becomes, and how images are cut.
    """

    pipeline: PipelineKind = "generate"
    vision_tower_path = "model.vision_tower"
    language_model_path = "model.language_model"
    image_token = "<image>"
    image_reach: Literal["group", "last"] | None = None
    """The images that a token sees through cross-attention; see :class:`Prompt`."""
    fallback: Fallback | None = None
    """The prompt of checkpoints without a chat template."""
    rows = "images"
    """The first dimension of what the vision encoder and the connector read and give."""
    one_row_a_request = False
    """Whether transformers' model takes all pictures of a request as one row of a batch."""

    def build(self, config: Mapping[str, Any]) -> Any:
        """With attention spelled out; attention that can be pruned is told how many heads it has."""
        model = super().build(config)
        for site in self.attention_sites(model):
            setattr(model.get_submodule(site.path), site.num_heads_attr, site.num_heads * site.queries)
        return model

    def token_id(self, checkpoint: Path) -> int:
        """The image token's id."""
        return int(self.config(checkpoint).image_token_id)

    def fallback_prompt(self, checkpoint: Path) -> Fallback | None:
        """:attr:`fallback`, or one that depends on the checkpoint."""
        return self.fallback

    @abstractmethod
    def image_tokens(self, config: Any) -> int:
        """The number of the text's places that one image takes (one tile, where there are tiles)."""

    @abstractmethod
    def vision_encoder(self, model: Any) -> nn.Module:
        """pixel_values (images, 3, height, width) -> image_features (images, tokens, hidden)."""

    @abstractmethod
    def connector(self, model: Any) -> nn.Module:
        """image_features -> image_embeds (images, image_tokens, width), or what its ``outputs`` names."""

    def decoder(self, model: Any) -> Any:
        """The language model: :class:`vlm_edge.families.parts.llm.Decoder`, or one of its kind."""
        return Decoder(
            model.get_submodule(self.language_model_path), model.get_output_embeddings(), model.config.image_token_id
        )

    def prompt(self, checkpoint: Path) -> Prompt | None:
        places, token_id = self.image_tokens(self.config(checkpoint)), self.token_id(checkpoint)
        prompt = read_prompt(checkpoint, self.image_token, token_id, places, self.fallback_prompt(checkpoint))
        return prompt.model_copy(update={"image_reach": self.image_reach})

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
            positions=text.max_position_embeddings if text.model_type == "opt" else None,  # the others' are computed
        )

    def components(self, model: Any, image: ImageProcessing) -> dict[str, ComponentExport]:
        vision = rows_component(self.vision_encoder(model), self.vision_example(image), ["image_features"], self.rows)
        connector = self.connector(model)
        more = self.connector_inputs(model)
        example = {"image_features": image_features_like(vision)} | {name: tensor for name, (tensor, _) in more.items()}
        axes = {"image_features": {0: self.rows}} | {name: each for name, (_, each) in more.items()}
        outputs = {name: {0: self.rows} for name in getattr(connector, "outputs", ("image_embeds",))}
        parts = {"vision_encoder": vision, "connector": component(connector, example, axes, outputs)}
        return parts | {"decoder": self.decoder_component(model, parts["connector"])}

    def vision_example(self, image: ImageProcessing) -> dict[str, Tensor]:
        """Example inputs of the vision encoder."""
        return {"pixel_values": random_pixels(image)}

    def connector_inputs(self, model: Any) -> Inputs:
        """Inputs of the connector beside image_features."""
        return {}

    def decoder_inputs(self) -> Inputs:
        """Inputs of the decoder between position_ids and the caches."""
        return {}

    def decoder_component(self, model: Any, connector: ComponentExport) -> ComponentExport:
        width = int(connector.output_shapes["image_embeds"][-1])
        vocabulary = model.get_output_embeddings().out_features
        return language_decoder_export(self.decoder(model), vocabulary, width, self.decoder_inputs())

    def attention_sites(self, model: Any) -> list[AttentionSite]:
        """Self-attention of the tower and of the language model, where every query has a key of its own."""
        return named_sites(model, {self.vision_tower_path: "vision_encoder", self.language_model_path: "decoder"})

    def model_inputs(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """The inputs of transformers' model that one request's pictures make."""
        joined = {
            name: torch.from_numpy(np.concatenate([picture.inputs[name] for picture in pictures]))
            for name in pictures[0].inputs
        }
        return {name: values[None] for name, values in joined.items()} if self.one_row_a_request else joined

    def reference(self, model: Any, inputs: Mapping[str, Tensor], **settings: Any) -> Any:
        """``generate`` for one prompt; no ``pixel_values`` where no image is asked about. ``image_token_id`` is among
        the settings for families whose model has to be told where the images are."""
        settings.pop("image_token_id", None)
        with fused_attention(model.get_submodule(self.vision_tower_path)):
            return model.generate(**inputs, **settings)


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
