"""Trains the reference model clip-easyvqa: a small CLIPModel that matches easy-VQA images with captions.

Contrastive loss over captions made from shape and colour ("a red circle", "a photo of a red circle", ...); images and
captions of the same shape and colour count as positives of each other.  Linear label heads on the vision tower, thrown
away at the end, make it learn shapes in hundreds of steps.  The weights that are saved are a moving average.  Images:
easy-VQA's train split (MIT licence) less a validation slice, and rendered images of the same kind.  The test split is
not read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from training.common import (
    JsonlLog,
    ScheduledOptimizer,
    WeightAverage,
    batches,
    save_folder,
    set_up,
    split_parameters,
)
from training.easyvqa import build_tokenizer, load_split, split_validation
from training.render import COLOR_NAMES, IMAGE_SIZE, SHAPES
from training.vision import IMAGE_MEAN, IMAGE_STD, LabelHeads, labelled_images, patch_labels, sine_positions

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "bos_token": "[BOS]",
    "cls_token": "[BOS]",
    "eos_token": "[EOS]",
    "sep_token": "[EOS]",
}
TEMPLATES: tuple[str, ...] = (
    "a {color} {shape}",
    "the {color} {shape}",
    "an image of a {color} {shape}",
    "a photo of a {color} {shape}",
    "a {shape} that is {color}",
    "there is a {color} {shape} in the image",
)
PROMPTS: tuple[str, ...] = tuple(f"a {color} {shape}" for shape in SHAPES for color in COLOR_NAMES)
PATCH, WIDTH, TEXT_WIDTH, MAX_CAPTION = 8, 128, 96, 32
STEPS, BATCH, MUON_LR, ADAM_LR = 1500, 96, 0.01, 1e-3
LABEL_WEIGHT = 0.25
AVERAGE_DECAY = 0.99


def build_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """The untrained model."""
    config = CLIPConfig(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "intermediate_size": 4 * WIDTH,
            "projection_dim": 64,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 4 * TEXT_WIDTH,
            "projection_dim": 64,
            "max_position_embeddings": MAX_CAPTION,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        projection_dim=64,
    )
    model = CLIPModel(config)
    with torch.no_grad():
        positions = model.vision_model.embeddings.position_embedding.weight
        positions[1:] = 0.3 * sine_positions(IMAGE_SIZE // PATCH, WIDTH)
    return model


def to_pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """What the image processor makes of images: uint8 [n, 64, 64, 3] -> float32 [n, 3, 64, 64]."""
    scaled = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0 - IMAGE_MEAN) / IMAGE_STD
    return scaled.contiguous()


def contrastive_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss of logits [batch, batch] (image, caption) where equal classes are all positives."""
    same = (classes[:, None] == classes[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


class Trainer:
    """Holds the model, the data and the log of one training."""

    def __init__(self, seed: int, rendered: int, log: JsonlLog) -> None:
        self.rng = np.random.default_rng(seed)
        self.log = log
        train, validation = split_validation(load_split("train"))
        self.data = labelled_images(train, rendered, seed)
        self.validation = labelled_images(validation, 0, seed)
        words = [template.format(shape="", color="") for template in TEMPLATES]
        self.tokenizer = build_tokenizer([*words, *SHAPES, *COLOR_NAMES], SPECIAL_TOKENS, MAX_CAPTION)
        self.model = build_model(self.tokenizer)
        self.heads = LabelHeads(WIDTH)
        self.log.write(
            event="start",
            seed=seed,
            images=len(self.data.shapes),
            rendered=rendered,
            parameters=self.model.num_parameters(),
            vocabulary=len(self.tokenizer),
        )

    def captions(self, index: NDArray[np.int64]) -> list[str]:
        """A caption from a random template for each image."""
        templates = self.rng.integers(len(TEMPLATES), size=len(index))
        return [
            TEMPLATES[t].format(shape=SHAPES[self.data.shapes[i]], color=COLOR_NAMES[self.data.colors[i]])
            for t, i in zip(templates, index, strict=True)
        ]

    def image_features(self, images: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit embeddings [n, 64] and normed hidden states [n, 1 + patches, width] of images."""
        vision = self.model.vision_model(pixel_values=to_pixels(images))
        embeddings = F.normalize(self.model.visual_projection(vision.pooler_output).float(), dim=-1)
        return embeddings, self.model.vision_model.post_layernorm(vision.last_hidden_state).float()

    def text_features(self, captions: list[str]) -> torch.Tensor:
        """Unit embeddings [n, 64] of captions."""
        encoded = self.tokenizer(captions, padding=True, return_tensors="pt")
        text = self.model.text_model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        return F.normalize(self.model.text_projection(text.pooler_output).float(), dim=-1)

    def train(self) -> None:
        """Trains all of the model in one phase."""
        data, model = self.data, self.model
        labels = patch_labels(data, PATCH)
        taught = nn.ModuleList([model, self.heads])
        matrices, others = split_parameters([taught], [model.vision_model.encoder, model.text_model.encoder])
        optimizer = ScheduledOptimizer(matrices, others, MUON_LR, ADAM_LR, STEPS)
        average = WeightAverage(taught, AVERAGE_DECAY)
        for step, index in enumerate(batches(len(data.shapes), BATCH, STEPS, self.rng), 1):
            shapes, colors = torch.from_numpy(data.shapes[index]), torch.from_numpy(data.colors[index])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                image, hidden = self.image_features(data.images[index])
                text = self.text_features(self.captions(index))
                losses = self.heads.losses(hidden, shapes, colors, labels[index])
            logits = model.logit_scale.exp() * image @ text.T
            contrast = contrastive_loss(logits, shapes * len(COLOR_NAMES) + colors)
            optimizer.step(contrast + LABEL_WEIGHT * torch.stack(list(losses.values())).sum())
            average.update()
            if step % 50 == 0 or step == STEPS:
                record = {"contrast": contrast.item()} | {key: value.item() for key, value in losses.items()}
                if step % 250 == 0 or step == STEPS:
                    average.swap()
                    record["val_zero_shot"] = self.validate()
                    if step != STEPS:
                        average.swap()
                self.log.write(step=step, **record)

    @torch.no_grad()
    def validate(self) -> float:
        """Zero-shot accuracy over the 24 prompts on the validation images."""
        image, _ = self.image_features(self.validation.images)
        guess = (image @ self.text_features(list(PROMPTS)).T).argmax(-1).numpy()
        wanted = self.validation.shapes * len(COLOR_NAMES) + self.validation.colors
        return float((guess == wanted).mean())

    def save(self, out: Path) -> None:
        """Saves the model and its processor as a Hugging Face folder."""
        side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        image_processor = CLIPImageProcessor(
            size=side,
            crop_size=side,
            do_center_crop=False,
            resample=3,
            image_mean=[IMAGE_MEAN] * 3,
            image_std=[IMAGE_STD] * 3,
        )
        save_folder(self.model, CLIPProcessor(image_processor, self.tokenizer), out)


def main() -> None:
    """Command line: trains the model and saves it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rendered", type=int, default=24000, help="number of rendered training images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--log", type=Path, required=True, help="JSONL log of the training")
    arguments = parser.parse_args()
    set_up(arguments.seed, arguments.threads)
    trainer = Trainer(arguments.seed, arguments.rendered, JsonlLog(arguments.log))
    trainer.train()
    trainer.save(arguments.out)


if __name__ == "__main__":
    main()
