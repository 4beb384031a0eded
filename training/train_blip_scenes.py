"""Trains the reference model blip-scenes: a small BlipForQuestionAnswering that answers questions about scenes.

Trained end to end from its answers alone, such a model stays at their prior for hours, so there are three phases:

1. vision: the vision tower alone learns to tell, for each patch, where it is and what is in it, and of the thing whose
   centre it holds colour, shape, size, offset, and whether it covers or is covered;
2. text: text encoder and decoder learn to answer on the tower's frozen tokens, and the encoder to point, at the noun of
   "the large red circle", to the patch with that thing's centre;
3. joint: everything is fine-tuned together with a low learning rate.

The weights that are saved are a moving average. The scenes are of other seeds than calibration/scenes.yaml's. A run
that is started again with the same arguments continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
    PreTrainedTokenizerFast,
)

from training.common import JsonlLog, ScheduledOptimizer, WeightAverage, save_folder, set_up, split_parameters
from training.scenes import (
    GRID,
    GROUP,
    GROUPS,
    IGNORE,
    LABELS,
    MAX_QUESTION,
    PATCH,
    PATCH_LABELS,
    SceneData,
    scene_data,
    scene_tokenizer,
)
from training.vision import sine_positions

WIDTH = 192
IMAGE_MEAN, IMAGE_STD = 0.5, 0.25
AVERAGE_DECAY = 0.99
CLASSES = {**LABELS, **PATCH_LABELS}
KEEP_EVERY, REPORT_EVERY = 100, 50
VALIDATION_IMAGES = 400


@dataclass(frozen=True)
class Phase:
    """Settings of one training phase; ``images`` a step (in the phases with questions: for each group of lengths)."""

    steps: int
    images: int
    muon_lr: float
    adam_lr: float


PHASES = {
    "vision": Phase(steps=1200, images=64, muon_lr=0.01, adam_lr=1e-3),
    "text": Phase(steps=3000, images=16, muon_lr=0.01, adam_lr=1e-3),
    "joint": Phase(steps=500, images=16, muon_lr=0.002, adam_lr=2e-4),
}


def build_model(tokenizer: PreTrainedTokenizerFast) -> BlipForQuestionAnswering:
    """The untrained model, with 48 cross-attention heads."""
    config = BlipConfig(
        vision_config={
            "image_size": PATCH * GRID,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "num_attention_heads": 6,
            "num_hidden_layers": 5,
            "intermediate_size": 4 * WIDTH,
            "projection_dim": 64,
            "initializer_range": 0.02,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "encoder_hidden_size": WIDTH,
            "num_attention_heads": 8,
            "num_hidden_layers": 3,
            "intermediate_size": 2 * WIDTH,
            "projection_dim": 64,
            "max_position_embeddings": MAX_QUESTION,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
        },
        projection_dim=64,
        image_text_hidden_size=64,
    )
    model = BlipForQuestionAnswering(config)
    for part in (model, model.text_decoder):
        part.generation_config.bos_token_id = tokenizer.bos_token_id
        part.generation_config.decoder_start_token_id = tokenizer.bos_token_id
        part.generation_config.eos_token_id = tokenizer.sep_token_id
        part.generation_config.pad_token_id = tokenizer.pad_token_id
        part.generation_config.max_new_tokens = 4
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding[0, 1:] = 0.3 * sine_positions(GRID, WIDTH)
    return model


class Heads(nn.Module):
    """Linear heads that teach the model and are thrown away: labels of patches, and the patch that a noun means."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Linear(WIDTH, sum(CLASSES.values()))
        self.place = nn.Linear(WIDTH, GRID * GRID)

    def logits(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of every label, for image tokens (batch, 1 + patches, width): (batch * patches, classes)."""
        parts = self.labels(hidden[:, 1:]).float().flatten(0, 1).split(list(CLASSES.values()), dim=-1)
        return dict(zip(CLASSES, parts, strict=True))


@contextmanager
def keys_once(model: BlipForQuestionAnswering, repeats: int) -> Iterator[None]:
    """Compute the encoder's cross-attention keys and values once for ``repeats`` questions in a row on one image."""
    handles = []
    for layer in model.text_encoder.encoder.layer:
        for linear in (layer.crossattention.self.key, layer.crossattention.self.value):
            handles.append(linear.register_forward_pre_hook(lambda _, inputs: (inputs[0][::repeats],)))
            handles.append(linear.register_forward_hook(lambda _, __, out: out.repeat_interleave(repeats, dim=0)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Batch:
    """Questions of one group: ids (questions, t), answers (questions,), words and places (questions, 2)."""

    ids: torch.Tensor
    answers: torch.Tensor
    words: torch.Tensor
    places: torch.Tensor


def question_batch(data: SceneData, index: NDArray[np.int64], group: int) -> Batch:
    """The questions of ``group`` on the images at ``index``, as long as the longest of them."""
    chosen = slice(group * GROUP, (group + 1) * GROUP)
    ids = data.tokens[index, chosen].flatten(0, 1).long()
    parts = (each[index, chosen].flatten(0, 1).long() for each in (data.answers, data.words, data.places))
    return Batch(ids[:, : int((ids != 0).sum(dim=1).max())], *parts)


class Trainer:
    """Holds the model, the data and the log of one training."""

    def __init__(self, seed: int, images: int, log: JsonlLog, folder: Path, phases: dict[str, Phase]) -> None:
        self.seed, self.log, self.folder, self.phases = seed, log, folder, phases
        self.tokenizer = scene_tokenizer()
        self.data = scene_data(self.tokenizer, f"train-{seed}", images)
        self.validation = scene_data(self.tokenizer, f"validation-{seed}", VALIDATION_IMAGES)
        self.model = build_model(self.tokenizer)
        self.heads = Heads()
        self.taught = nn.ModuleList([self.model, self.heads])
        parameters = {"parameters": self.model.num_parameters()}
        parameters["vision_parameters"] = sum(each.numel() for each in self.model.vision_model.parameters())
        self.log.write(event="start", seed=seed, images=images, vocabulary=len(self.tokenizer), **parameters)

    def see(self, data: SceneData, index: NDArray[np.int64]) -> torch.Tensor:
        """The vision tower's tokens of the images at ``index``: (images, 1 + patches, width)."""
        pixels = torch.from_numpy(data.images[index]).permute(0, 3, 1, 2)
        hidden: torch.Tensor = self.model.vision_model((pixels.float() / 255 - IMAGE_MEAN) / IMAGE_STD)[0]
        return hidden

    def label_loss(self, hidden: torch.Tensor, data: SceneData, index: NDArray[np.int64]) -> torch.Tensor:
        losses = [
            F.cross_entropy(logits, data.labels[key][index].flatten().long(), ignore_index=IGNORE)
            for key, logits in self.heads.logits(hidden).items()
        ]
        return torch.stack(losses).sum()

    def answer_logits(self, tokens: torch.Tensor, batch: Batch, *, see_padding: bool) -> tuple[torch.Tensor, ...]:
        """Logits of the answer and of what follows it, and the encoder's tokens; image tokens one row an image.

        transformers' forward hides the padding of a question from the decoder, its generate does not.
        """
        mask = (batch.ids != 0).long()
        image = tokens.repeat_interleave(GROUP, dim=0)
        with keys_once(self.model, GROUP):
            hidden = self.model.text_encoder(
                input_ids=batch.ids, attention_mask=mask, encoder_hidden_states=image, return_dict=True
            )[0]
        start = torch.full_like(batch.answers, self.tokenizer.bos_token_id)
        logits = self.model.text_decoder(
            input_ids=torch.stack([start, batch.answers], dim=1),
            encoder_hidden_states=hidden,
            encoder_attention_mask=torch.ones_like(mask) if see_padding else mask,
        ).logits
        return logits.float(), hidden

    def question_losses(self, tokens: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Of the answers, and of the places that nouns mean."""
        logits, hidden = self.answer_logits(tokens, batch, see_padding=bool(torch.rand(()) < 0.5))
        ends = torch.full_like(batch.answers, self.tokenizer.sep_token_id)
        losses = {"answer": F.cross_entropy(logits[:, 0], batch.answers)}
        losses["end"] = F.cross_entropy(logits[:, 1], ends)
        known = batch.places >= 0
        if known.any():
            rows = known.nonzero()[:, 0]
            pointed = self.heads.place(hidden[rows, batch.words[known]])
            losses["place"] = F.cross_entropy(pointed.float(), batch.places[known])
        return losses

    def vision_step(self, index: NDArray[np.int64]) -> dict[str, float]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.label_loss(self.see(self.data, index), self.data, index)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"labels": loss.item()}

    def question_step(self, index: NDArray[np.int64], *, joint: bool) -> dict[str, float]:
        """Gradients of one step: GROUPS batches of questions, each of other images and of another length."""
        record: dict[str, float] = {}
        for group, part in enumerate(np.array_split(index, GROUPS)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                with torch.set_grad_enabled(joint):
                    tokens = self.see(self.data, part)
                losses = self.question_losses(tokens, question_batch(self.data, part, group))
                if joint:
                    losses["labels"] = 0.1 * self.label_loss(tokens, self.data, part)
                loss = torch.stack(list(losses.values())).sum() / GROUPS
            loss.backward()  # type: ignore[no-untyped-call]
            for key, value in losses.items():
                record[key] = record.get(key, 0.0) + value.item() / GROUPS
        return record

    def run(self, name: str) -> None:
        """One phase, from its checkpoint if there is one."""
        phase, model = self.phases[name], self.model
        parts = {"vision": [model.vision_model, self.heads.labels], "joint": [self.taught]}
        modules = parts.get(name, [model.text_encoder, model.text_decoder, self.heads.place])
        owners = [model.vision_model.encoder, model.text_encoder.encoder, model.text_decoder.bert.encoder]
        optimizer = ScheduledOptimizer(*split_parameters(modules, owners), phase.muon_lr, phase.adam_lr, phase.steps)
        average = WeightAverage(nn.ModuleList(modules), AVERAGE_DECAY)
        first = self.restore(name, optimizer, average)
        if first >= phase.steps:
            return
        images = phase.images if name == "vision" else phase.images * GROUPS
        step_of: Callable[[NDArray[np.int64]], dict[str, float]] = self.vision_step
        if name != "vision":
            step_of = lambda index: self.question_step(index, joint=name == "joint")  # noqa: E731
        for step in range(first + 1, phase.steps + 1):
            rng = np.random.default_rng([self.seed, sorted(self.phases).index(name), step])
            record = step_of(rng.choice(len(self.data.images), size=images, replace=False))
            optimizer.update()
            average.update()
            if step % REPORT_EVERY == 0 or step == phase.steps:
                if step % (4 * REPORT_EVERY) == 0 or step == phase.steps:
                    average.swap()
                    record |= self.validate(answers=name != "vision")
                    if step != phase.steps:
                        average.swap()
                self.log.write(phase=name, step=step, **record)
            if step % KEEP_EVERY == 0 or step == phase.steps:
                self.keep(name, step, optimizer, average)

    def keep(self, name: str, step: int, optimizer: ScheduledOptimizer, average: WeightAverage) -> None:
        """Write a checkpoint beside the last one, then put it in its place."""
        state = {"step": step, "taught": self.taught.state_dict()}
        state |= {"optimizer": optimizer.state(), "average": average.state(), "torch": torch.get_rng_state()}
        fresh = self.folder / f"{name}.new"
        torch.save(state, fresh)
        fresh.replace(self.folder / f"{name}.pt")

    def restore(self, name: str, optimizer: ScheduledOptimizer, average: WeightAverage) -> int:
        """Continue from a phase's checkpoint; returns the steps that it had done."""
        path = self.folder / f"{name}.pt"
        if not path.is_file():
            return 0
        state: dict[str, Any] = torch.load(path)
        self.taught.load_state_dict(state["taught"])
        optimizer.restore(state["optimizer"])
        average.restore(state["average"])
        torch.set_rng_state(state["torch"])
        return int(state["step"])

    @torch.no_grad()
    def validate(self, *, answers: bool) -> dict[str, float]:
        """Shares of the validation images' labels and answers that are right."""
        right: dict[str, float] = dict.fromkeys([*LABELS, *(["answers", "places"] if answers else [])], 0)
        total = dict(right)
        data = self.validation

        def count(key: str, guess: torch.Tensor, wanted: torch.Tensor) -> None:
            known = wanted >= 0
            right[key] += int((guess.argmax(-1) == wanted)[known].sum())
            total[key] += int(known.sum())

        for index in np.array_split(np.arange(len(data.images)), 8):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                tokens = self.see(data, index)
                logits = self.heads.logits(tokens)
                for key in LABELS:
                    count(key, logits[key], data.labels[key][index].flatten())
                for group in range(GROUPS if answers else 0):
                    batch = question_batch(data, index, group)
                    answered, hidden = self.answer_logits(tokens, batch, see_padding=True)
                    count("answers", answered[:, 0], batch.answers)
                    rows, _ = (batch.places >= 0).nonzero(as_tuple=True)
                    known = batch.places >= 0
                    count("places", self.heads.place(hidden[rows, batch.words[known]]), batch.places[known])
        return {f"val_{key}": right[key] / max(1, total[key]) for key in right}

    def save(self, out: Path) -> None:
        """Save the model and its processor as a Hugging Face folder."""
        side = PATCH * GRID
        image_processor = BlipImageProcessor(
            size={"height": side, "width": side}, resample=3, image_mean=[IMAGE_MEAN] * 3, image_std=[IMAGE_STD] * 3
        )
        save_folder(self.model, BlipProcessor(image_processor, self.tokenizer), out)


def main() -> None:
    """Command line: runs the phases in sequence and saves the model when it can answer, then again at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=30000, help="number of training scenes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--log", type=Path, required=True, help="JSONL log of the training")
    arguments = parser.parse_args()
    set_up(arguments.seed, arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments.seed, arguments.images, JsonlLog(arguments.log), arguments.work, PHASES)
    trainer.run("vision")
    trainer.run("text")
    trainer.save(arguments.out)
    trainer.run("joint")
    trainer.save(arguments.out)


if __name__ == "__main__":
    main()
