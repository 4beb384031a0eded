"""Trains the reference model blip-easyvqa: a small BlipForQuestionAnswering that answers easy-VQA.

Trained end to end, the model stays at the answers' prior for thousands of steps, so the training has four phases:

1. windows: the vision tower alone learns shape and colour, per patch and from the CLS token, on windows of 9x9 patches
   that hold the shape (a third of the tokens, the true position embeddings);
2. vision: the same on whole images;
3. text: text encoder and decoder learn to answer while the vision tower is frozen;
4. joint: everything is fine-tuned together with a low learning rate.

The weights that are saved are a moving average.  Images: easy-VQA's train split (MIT licence) less a validation slice,
and rendered images of the same kind.  The test split is not read.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

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
from transformers.models.blip.modeling_blip import BlipVisionModel

from training.common import (
    JsonlLog,
    ScheduledOptimizer,
    WeightAverage,
    batches,
    save_folder,
    set_up,
    split_parameters,
)
from training.easyvqa import (
    ANSWERS,
    QuestionSampler,
    build_tokenizer,
    load_split,
    split_validation,
)
from training.vision import (
    IMAGE_MEAN,
    IMAGE_STD,
    MAX_BACKGROUND,
    LabelHeads,
    LabelledImages,
    labelled_images,
    patch_coverage,
    patch_labels,
    sine_positions,
)

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "bos_token": "[DEC]",
}
PATCH, GRID, WINDOW = 4, 16, 9
WIDTH = 160
MAX_QUESTION = 32


@dataclass(frozen=True)
class Phase:
    """Settings of one training phase."""

    steps: int
    batch: int
    muon_lr: float
    adam_lr: float


PHASES = {
    "windows": Phase(steps=300, batch=64, muon_lr=0.01, adam_lr=1e-3),
    "vision": Phase(steps=150, batch=32, muon_lr=0.004, adam_lr=4e-4),
    "text": Phase(steps=1000, batch=24, muon_lr=0.01, adam_lr=1e-3),
    "joint": Phase(steps=300, batch=24, muon_lr=0.002, adam_lr=2e-4),
}
QUESTIONS_PER_IMAGE = 8
AVERAGE_DECAY = 0.99


def build_model(tokenizer: PreTrainedTokenizerFast) -> BlipForQuestionAnswering:
    """The untrained model; the vision tower holds most of the parameters and of the compute."""
    config = BlipConfig(
        vision_config={
            "image_size": PATCH * GRID,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "num_attention_heads": 5,
            "num_hidden_layers": 8,
            "intermediate_size": 1280,
            "projection_dim": 64,
            "initializer_range": 0.02,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "encoder_hidden_size": WIDTH,
            "num_attention_heads": 10,
            "num_hidden_layers": 2,
            "intermediate_size": 256,
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


@dataclass(frozen=True)
class PatchData:
    """Labelled images cut into patches.

    patches: uint8 [n, 256, 48], channels first inside a patch; patch_shape: int64 [n, 256], 0 background, 1.. shape,
    -100 at faint edges; shapes and colors: int64 [n]; corner_low and corner_high: int64 [n, 2], the range of top-left
    patches (row, column) from which a window of 9x9 patches holds the shape.
    """

    patches: torch.Tensor
    patch_shape: torch.Tensor
    shapes: torch.Tensor
    colors: torch.Tensor
    corner_low: NDArray[np.int64]
    corner_high: NDArray[np.int64]


def to_patches(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [n, 64, 64, 3] -> uint8 [n, 256, 48]."""
    count = len(images)
    cut = images.reshape(count, GRID, PATCH, GRID, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    return torch.from_numpy(np.ascontiguousarray(cut).reshape(count, GRID * GRID, 3 * PATCH * PATCH))


def prepare(data: LabelledImages) -> PatchData:
    """Cuts images into patches and finds for each the windows that hold its shape."""
    touched = patch_coverage(data.coverage, PATCH) >= MAX_BACKGROUND
    low, high = [], []
    for axis in (2, 1):
        inside: NDArray[np.bool_] = np.asarray(touched.any(axis=axis))
        first, last = inside.argmax(axis=1), GRID - 1 - inside[:, ::-1].argmax(axis=1)
        low.append(np.clip(last - WINDOW + 1, 0, GRID - WINDOW))
        high.append(np.maximum(np.minimum(first, GRID - WINDOW), low[-1]))
    return PatchData(
        to_patches(data.images),
        patch_labels(data, PATCH),
        torch.from_numpy(data.shapes),
        torch.from_numpy(data.colors),
        np.stack(low, axis=1),
        np.stack(high, axis=1),
    )


def window_positions(data: PatchData, index: NDArray[np.int64], rng: np.random.Generator) -> torch.Tensor:
    """Patch positions of one random window per image that holds its shape, int64 [batch, 81]."""
    corner = rng.integers(data.corner_low[index], data.corner_high[index] + 1)
    rows = corner[:, 0, None] + np.arange(WINDOW)
    columns = corner[:, 1, None] + np.arange(WINDOW)
    return torch.from_numpy((rows[:, :, None] * GRID + columns[:, None, :]).reshape(len(index), -1))


def encode(vision: BlipVisionModel, patches: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """The vision tower on uint8 patches [batch, t, 48] at `positions` [batch, t] (all, in order, if None).

    Returns float32 [batch, 1 + t, width], the CLS token first; for whole images it equals BlipVisionModel's
    last_hidden_state.
    """
    embeddings = vision.embeddings
    pixels = (patches.float() / 255.0 - IMAGE_MEAN) / IMAGE_STD
    weight = embeddings.patch_embedding.weight
    tokens = F.linear(pixels, weight.flatten(1), embeddings.patch_embedding.bias).float()
    codes = embeddings.position_embedding[0]
    tokens = tokens + (codes[1:] if positions is None else codes[1:][positions])
    cls = (embeddings.class_embedding[0] + codes[:1]).expand(len(tokens), 1, -1)
    hidden: torch.Tensor = vision.encoder(torch.cat([cls, tokens], dim=1)).last_hidden_state
    normed: torch.Tensor = vision.post_layernorm(hidden)
    return normed.float()


@torch.no_grad()
def validate_vision(vision: BlipVisionModel, heads: LabelHeads, data: PatchData) -> dict[str, float]:
    """Accuracies of the label heads on whole images."""
    shape_right = color_right = patch_right = patch_count = 0
    for start in range(0, len(data.shapes), 50):
        index = slice(start, start + 50)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = encode(vision, data.patches[index])
            shape_right += int((heads.shape(hidden[:, 0]).argmax(-1) == data.shapes[index]).sum())
            color_right += int((heads.color(hidden[:, 0]).argmax(-1) == data.colors[index]).sum())
            foreground = data.patch_shape[index] > 0
            guess = heads.patch_shape(hidden[:, 1:]).argmax(-1)
            patch_right += int((guess == data.patch_shape[index])[foreground].sum())
            patch_count += int(foreground.sum())
    count = len(data.shapes)
    return {
        "val_shape": shape_right / count,
        "val_color": color_right / count,
        "val_patch_shape": patch_right / patch_count,
    }


class Trainer:
    """Holds the model, the data and the log of one training."""

    def __init__(self, seed: int, rendered: int, log: JsonlLog, phases: dict[str, Phase]) -> None:
        self.rng = np.random.default_rng(seed)
        self.log = log
        self.phases = phases
        train, self.validation = split_validation(load_split("train"))
        questions = [question for _, question, _ in train.questions]
        self.tokenizer = build_tokenizer([*questions, *ANSWERS], SPECIAL_TOKENS, MAX_QUESTION)
        self.sampler = QuestionSampler(questions)
        self.data = prepare(labelled_images(train, rendered, seed))
        self.validation_data = prepare(labelled_images(self.validation, 0, seed))
        self.model = build_model(self.tokenizer)
        self.heads = LabelHeads(WIDTH)
        self.log.write(
            event="start",
            seed=seed,
            images=len(self.data.shapes),
            rendered=rendered,
            parameters=self.model.num_parameters(),
            vision_parameters=sum(p.numel() for p in self.model.vision_model.parameters()),
            vocabulary=len(self.tokenizer),
        )

    def optimizer(self, phase: Phase, modules: list[nn.Module]) -> ScheduledOptimizer:
        """The optimizer of a phase for the trainable parameters of `modules`."""
        model = self.model
        owners = [model.vision_model.encoder, model.text_encoder.encoder, model.text_decoder.bert.encoder]
        matrices, others = split_parameters(modules, owners)
        return ScheduledOptimizer(matrices, others, phase.muon_lr, phase.adam_lr, phase.steps)

    def train_vision(self, name: str) -> None:
        """Phases 1 and 2: shape and colour, from windows ("windows") or whole images ("vision")."""
        phase, data, vision = self.phases[name], self.data, self.model.vision_model
        taught = nn.ModuleList([vision, self.heads])
        optimizer = self.optimizer(phase, [taught])
        average = WeightAverage(taught, AVERAGE_DECAY)
        for step, index in enumerate(batches(len(data.shapes), phase.batch, phase.steps, self.rng), 1):
            patches, patch_shape, positions = data.patches[index], data.patch_shape[index], None
            if name == "windows":
                positions = window_positions(data, index, self.rng)
                patches = torch.take_along_dim(patches, positions[:, :, None], dim=1)
                patch_shape = torch.take_along_dim(patch_shape, positions, dim=1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = encode(vision, patches, positions)
                losses = self.heads.losses(hidden, data.shapes[index], data.colors[index], patch_shape)
            optimizer.step(torch.stack(list(losses.values())).sum())
            average.update()
            if step % 50 == 0 or step == phase.steps:
                record = {key: value.item() for key, value in losses.items()}
                if step % 100 == 0 or step == phase.steps:
                    average.swap()
                    record |= validate_vision(vision, self.heads, self.validation_data)
                    if step != phase.steps:
                        average.swap()
                self.log.write(phase=name, step=step, **record)

    def question_batch(self, index: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draws questions for the images; returns ids and mask [batch * 8, t], labels [batch * 8, 3]."""
        questions, answers = [], []
        for image in index:
            shape, color = int(self.data.shapes[image]), int(self.data.colors[image])
            for question, answer in self.sampler.sample(shape, color, QUESTIONS_PER_IMAGE, self.rng):
                questions.append(question)
                answers.append(answer)
        encoded = self.tokenizer(questions, padding=True, return_tensors="pt")
        start, stop = self.tokenizer.bos_token_id, self.tokenizer.sep_token_id
        labels = torch.tensor([[start, self.tokenizer.convert_tokens_to_ids(answer), stop] for answer in answers])
        return encoded["input_ids"], encoded["attention_mask"], labels

    def answer_loss(
        self, image_tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The answer loss of BlipForQuestionAnswering for image tokens [batch, 257, width], eight questions an image.

        Unlike its forward, its generate lets the decoder look at the padding of the question too; half of the questions
        are trained each way.
        """
        model = self.model
        image_tokens = image_tokens.repeat_interleave(QUESTIONS_PER_IMAGE, dim=0)
        question_tokens = model.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=image_tokens,
            encoder_attention_mask=torch.ones(image_tokens.shape[:2], dtype=torch.long),
        )[0]
        loss: torch.Tensor = model.text_decoder(
            input_ids=labels,
            labels=labels,
            encoder_hidden_states=question_tokens,
            encoder_attention_mask=mask | (torch.rand(len(mask), 1) < 0.5),
        ).loss
        return loss

    def train_text(self) -> None:
        """Phase 3: text encoder and decoder on top of the frozen vision tower."""
        phase, data, model = self.phases["text"], self.data, self.model
        taught = nn.ModuleList([model.text_encoder, model.text_decoder])
        optimizer = self.optimizer(phase, [taught])
        average = WeightAverage(taught, AVERAGE_DECAY)
        for step, index in enumerate(batches(len(data.shapes), phase.batch, phase.steps, self.rng), 1):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                with torch.no_grad():
                    image_tokens = encode(model.vision_model, data.patches[index])
                loss = self.answer_loss(image_tokens, *self.question_batch(index))
            optimizer.step(loss)
            average.update()
            self.report("text", step, phase, average, {"answer": loss.item()})

    def train_joint(self) -> None:
        """Phase 4: the whole model, with the label losses at a tenth of their weight."""
        phase, data, model = self.phases["joint"], self.data, self.model
        taught = nn.ModuleList([model, self.heads])
        optimizer = self.optimizer(phase, [taught])
        average = WeightAverage(taught, AVERAGE_DECAY)
        for step, index in enumerate(batches(len(data.shapes), phase.batch, phase.steps, self.rng), 1):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                image_tokens = encode(model.vision_model, data.patches[index])
                losses = self.heads.losses(
                    image_tokens, data.shapes[index], data.colors[index], data.patch_shape[index]
                )
                answer = self.answer_loss(image_tokens, *self.question_batch(index))
            optimizer.step(answer + 0.1 * torch.stack(list(losses.values())).sum())
            average.update()
            record = {"answer": answer.item()} | {key: value.item() for key, value in losses.items()}
            self.report("joint", step, phase, average, record)

    def report(self, name: str, step: int, phase: Phase, average: WeightAverage, record: dict[str, float]) -> None:
        """Logs a step now and then, with the validation of the averaged weights; the last step keeps these weights."""
        if step % 50 and step != phase.steps:
            return
        if step % 100 == 0 or step == phase.steps:
            average.swap()
            record |= {"val_vqa": self.validate_answers()}
            record |= validate_vision(self.model.vision_model, self.heads, self.validation_data)
            if step != phase.steps:
                average.swap()
        self.log.write(phase=name, step=step, **record)

    @torch.no_grad()
    def validate_answers(self) -> float:
        """The part of the validation questions whose first generated token is the right answer."""
        model, tokenizer, right = self.model, self.tokenizer, 0
        patches = to_patches(self.validation.images)
        for start in range(0, len(self.validation.questions), 128):
            part = self.validation.questions[start : start + 128]
            images = sorted({image for image, _, _ in part})
            row = {image: position for position, image in enumerate(images)}
            encoded = tokenizer([question for _, question, _ in part], padding=True, return_tensors="pt")
            with torch.autocast("cpu", dtype=torch.bfloat16):
                tokens = encode(model.vision_model, patches[images])[[row[image] for image, _, _ in part]]
                question_tokens = model.text_encoder(
                    input_ids=encoded["input_ids"],
                    attention_mask=encoded["attention_mask"],
                    encoder_hidden_states=tokens,
                    encoder_attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long),
                )[0]
                logits = model.text_decoder(
                    input_ids=torch.full((len(part), 1), tokenizer.bos_token_id),
                    encoder_hidden_states=question_tokens,
                    encoder_attention_mask=torch.ones(question_tokens.shape[:2], dtype=torch.long),
                ).logits
            wanted = torch.tensor([tokenizer.convert_tokens_to_ids(answer) for _, _, answer in part])
            right += int((logits[:, 0].argmax(-1) == wanted).sum())
        return right / len(self.validation.questions)

    def processor(self) -> BlipProcessor:
        """The processor that belongs to the model."""
        side = PATCH * GRID
        image_processor = BlipImageProcessor(
            size={"height": side, "width": side}, resample=3, image_mean=[IMAGE_MEAN] * 3, image_std=[IMAGE_STD] * 3
        )
        return BlipProcessor(image_processor, self.tokenizer)

    def save(self, out: Path) -> None:
        """Saves the model and its processor as a Hugging Face folder."""
        save_folder(self.model, self.processor(), out)


def main() -> None:
    """Command line: runs the four phases in sequence and saves the model when it can answer, then again at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rendered", type=int, default=24000, help="number of rendered training images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--log", type=Path, required=True, help="JSONL log of the training")
    arguments = parser.parse_args()
    set_up(arguments.seed, arguments.threads)
    trainer = Trainer(arguments.seed, arguments.rendered, JsonlLog(arguments.log), PHASES)
    trainer.train_vision("windows")
    trainer.train_vision("vision")
    trainer.train_text()
    trainer.save(arguments.out)
    trainer.train_joint()
    trainer.save(arguments.out)


if __name__ == "__main__":
    main()
