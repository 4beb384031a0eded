"""The learner of language models that see images: LLaVA's line, the Q-Former's, gated cross-attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.families.loading import LoadedCheckpoint
from vlm_edge.processing.image_inputs import picture_embeds
from vlm_edge.processing.manifest import CROSS_PREFIX, TensorSpec
from vlm_edge.processing.picture import Picture
from vlm_edge.processing.text import Tokenizer
from vlm_edge.runtime.generate import prompt_feed, prompt_text, prompt_tokens
from vlm_edge.runtime.vision import QUESTION_IDS, QUESTION_MASK, EncodedImage
from vlm_edge.training.learner import IMAGES, Learner, TrainingBatch, answer_of, empty_past, padded
from vlm_edge.training.losses import IGNORED

EMBEDS, NEWLINE, PLACES, PREFIX = "image_embeds", "image_newline", "embed_places", "prefix_mask"


class PromptLearner(Learner):
    """``generate``: the prompt that the device writes, then the answer; rows end together, as they do there."""

    def __init__(self, loaded: LoadedCheckpoint) -> None:
        super().__init__(loaded)
        prompt, generation = self.family.prompt(self.folder), self.family.generation(self.folder)
        assert prompt is not None
        assert generation is not None
        self.layout, self.generation = prompt, generation
        self.inputs = {
            name: TensorSpec(dtype="float32" if value.is_floating_point() else "int64", shape=tuple(value.shape))
            for name, value in self.parts["decoder"].export.example.items()
            if not name.startswith(CROSS_PREFIX)
        }
        asked = prompt.instruction
        self.instruction = None if asked is None else Tokenizer(self.folder, asked)

    def batch(
        self, samples: Sequence[Sample], image_index: NDArray[np.int64], pictures: Sequence[Picture], dataset: Dataset
    ) -> TrainingBatch:
        """``labels`` (questions, answer_tokens): the answer and the token that ends it, from the left."""
        shown = [self._encoded(picture) for picture in pictures]
        images = [[shown[index]] for index in image_index]
        prompts, answers = [], []
        for sample, pair in zip(samples, images, strict=True):
            prompt, answer = self.tokens(sample, pair)
            prompts.append(prompt)
            answers.append(answer)
        rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
        feed = prompt_feed(self.inputs, self.layout, rows, images, self.generation.pad_token_id)
        if PREFIX in feed:
            feed[PREFIX] = feed[PREFIX].copy()
            for mask, answer in zip(feed[PREFIX], answers, strict=True):
                mask[mask.shape[0] - len(answer) + 1 :] = 0
        if EMBEDS in self.parts["connector"].outputs and self.instruction is None:
            feed[PLACES] = self._places(pictures, image_index)
        if self.instruction is not None:
            ids, mask = self.instruction.encode([sample.text for sample in samples])
            feed |= {QUESTION_IDS: ids, QUESTION_MASK: mask}
        text = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in feed.items()}
        sizes = tuple(picture.tiles for picture in pictures)
        return TrainingBatch(torch.from_numpy(image_index), text, padded(answers, IGNORED), sizes)

    def check(self, dataset: Dataset, pictures: Sequence[Picture]) -> None:
        """
        Raises:
            VlmEdgeError: a question about the image of most tokens is longer than the model's context.
        """
        longest = self._encoded(max(pictures, key=lambda picture: len(picture.text)))
        for text in {sample.text for sample in dataset.samples}:
            whole = prompt_text(self.layout, text, [longest])
            prompt_tokens(self.tokenizer, self.layout, whole, [longest])

    def tokens(self, sample: Sample, images: Sequence[EncodedImage]) -> tuple[list[int], list[int]]:
        """A sample's prompt, and its answer as the tokenizer reads it behind the prompt, with the token that ends it:
        the one that ends turns within the prompt, where there is one. An answer too long for the context is cut."""
        text = prompt_text(self.layout, sample.text, images)
        prompt = prompt_tokens(self.tokenizer, self.layout, text, images)
        answer = answer_of(sample)
        answer = answer if text[-1:].isspace() else f" {answer}"
        special = self.layout.special_tokens
        both: list[int] = self.tokenizer.encode([text + answer], special_tokens=special, cut=True)[0][0].tolist()
        ids = both[len(prompt) :]
        if both[: len(prompt)] != prompt:  # the tokenizer joins the prompt's end and the answer, or ends every text
            ids = self.tokenizer.encode([answer], special_tokens=False, cut=True)[0][0].tolist()
        ends = [token for token in reversed(prompt) if token in self.generation.eos_token_ids]
        return prompt, [*ids, ends[0] if ends else self.generation.eos_token_id]

    def _encoded(self, picture: Picture) -> EncodedImage:
        """A picture's text and grid; with cross-attention also which of its tokens belong to no empty tile."""
        name, shape = next(iter(self.parts["connector"].export.output_shapes.items()))
        if name == EMBEDS:
            return EncodedImage(picture.text, None, picture.grid)
        tiles = picture.inputs.get("aspect_ratio_mask", np.ones((1, 1), np.int64))[0]
        return EncodedImage(picture.text, None, picture.grid, shown=np.repeat(tiles, int(shape[2]) // len(tiles)))

    def _places(self, pictures: Sequence[Picture], image_index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The connector's rows in the order of the prompts' image tokens: places in all its embeddings, laid out one
        behind the other, with the one that ends a row of patches last."""
        tokens = self.layout.image_tokens
        total = tokens * sum(picture.tiles for picture in pictures)
        own, start = [], 0
        for picture in pictures:
            count = picture.tiles * tokens
            numbers = np.arange(start, start + count, dtype=np.float64).reshape(picture.tiles, tokens, 1)
            placed = picture_embeds(numbers, np.array([float(total)]), picture, self.image)  # type: ignore[arg-type]
            own.append(placed.reshape(-1).astype(np.int64))
            start += count
        return np.concatenate([own[index] for index in image_index])

    def logits(self, features: Tensor, batch: TrainingBatch) -> Tensor:
        """(questions, answer_tokens, vocabulary); behind an answer's end they mean nothing."""
        connector, decoder = self.parts["connector"], self.parts["decoder"]
        feed = dict(batch.text)
        seen = features if self.instruction is None else features[batch.image_index]
        outputs = connector(feed | {IMAGES: seen})
        if PLACES in feed:
            flat = outputs[EMBEDS].flatten(0, -2)
            flat = torch.cat([flat, outputs[NEWLINE][:1]]) if NEWLINE in outputs else flat
            feed[EMBEDS] = flat[feed[PLACES]]
        elif EMBEDS in outputs:
            feed[EMBEDS] = outputs[EMBEDS].flatten(0, 1)
        else:
            feed |= {name: values[batch.image_index] for name, values in outputs.items()}
        counts, longest = (batch.labels != IGNORED).sum(dim=1, keepdim=True), batch.labels.shape[1]
        decoder.module.last_tokens = longest
        logits = decoder(feed | empty_past(decoder.module, feed["input_ids"]))["logits"]
        places = torch.arange(longest, device=logits.device) + longest - counts  # the answers end together
        return logits.gather(1, places.clamp(max=longest - 1)[..., None].expand(-1, -1, logits.shape[-1]))
