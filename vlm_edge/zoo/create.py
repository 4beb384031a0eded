"""Checkpoints of real architectures at real sizes with seeded random weights, for speed and parity work.

Sizes are those of the published models: Salesforce/blip-vqa-base, Salesforce/blip-image-captioning-base,
openai/clip-vit-base-patch32, -patch16 and -large-patch14; ``small`` is the reference model's, ``tiny`` is for tests.
``blip-mobilevit`` is the reference's text part behind a MobileViT student that sees 256 x 256 pixels.

Weights are drawn with variance 1 / fan_in (2 / fan_in for convolutions; He et al. 2015, arXiv:1502.01852), so that
activations neither fade into denormals, which are slow, nor explode.
"""

from __future__ import annotations

import json
import math
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn

from vlm_edge.checkpoints.weights import WEIGHTS_NAME, tied_aliases
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families import FAMILIES
from vlm_edge.files import whole_folder
from vlm_edge.surgery.replay import SURGERY_NAME, apply_surgery
from vlm_edge.zoo import SIZES

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Tower:
    """Sizes of one transformer."""

    hidden: int
    layers: int
    heads: int
    mlp: int

    def config(self) -> dict[str, int]:
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp,
        }


@dataclass(frozen=True)
class Size:
    """Sizes of one model: pixels, vocabulary and longest text in tokens; ``projection`` of dual encoders."""

    image: int
    patch: int
    vision: Tower
    text: Tower
    vocabulary: int
    positions: int
    projection: int = 32


BASE = Tower(768, 12, 12, 3072)
BLIP_TINY = Size(32, 8, Tower(32, 2, 4, 64), Tower(32, 2, 4, 64), 128, 24)
BLIP_BASE = Size(384, 16, BASE, BASE, 30524, 512, 512)
_SIZES: dict[str, dict[str, Size]] = {
    "blip-vqa": {
        "tiny": BLIP_TINY,
        "small": Size(64, 4, Tower(160, 8, 5, 1280), Tower(160, 2, 10, 256), 128, 32, 64),
        "base": BLIP_BASE,
    },
    "blip-captioning": {"tiny": BLIP_TINY, "base": BLIP_BASE},
    "blip-mobilevit": {
        f"mobilevit-{width}": Size(256, 16, Tower(160, 0, 5, 1280), Tower(160, 2, 10, 256), 128, 32, 64)
        for width in ("xxs", "xs", "s")
    },
    "clip": {
        "tiny": Size(32, 8, Tower(32, 2, 4, 64), Tower(32, 2, 4, 64), 128, 24),
        "vit-b-32": Size(224, 32, BASE, Tower(512, 12, 8, 2048), 49408, 77, 512),
        "vit-b-16": Size(224, 16, BASE, Tower(512, 12, 8, 2048), 49408, 77, 512),
        "vit-l-14": Size(224, 14, Tower(1024, 24, 16, 4096), Tower(768, 12, 12, 3072), 49408, 77, 768),
    },
}


def create(name: str, size: str, out: Path, seed: int = 0) -> Path:
    """Write a complete checkpoint folder ``out``; the same arguments give the same bytes.

    Raises:
        VlmEdgeError: the name or the size is unknown, or ``out`` is there and not an empty folder.
    """
    if name not in SIZES or size not in SIZES[name]:
        known = "; ".join(f"{model}: {', '.join(sizes)}" for model, sizes in SIZES.items())
        raise VlmEdgeError(f"unknown model or size {name!r}, {size!r}; known: {known}", "choose one of these")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise VlmEdgeError(f"{out}: exists and is not an empty folder", "give a new folder")
    sizes = _SIZES[name][size]
    family = FAMILIES["blip-vqa" if name == "blip-mobilevit" else name]
    config = _config(sizes, family.architectures[0])
    with torch.random.fork_rng(devices=[]):
        model = family.build(config).float()
        surgery = _student(size, sizes.image) if name == "blip-mobilevit" else []
        apply_surgery(model, family, surgery, out / SURGERY_NAME)
    randomize(model, seed)
    aliases = tied_aliases(model)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if key not in aliases}
    with whole_folder(out) as folder:
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        _write_json(folder / "config.json", config)
        _write_json(folder / "preprocessor_config.json", _image_processor(name, sizes.image))
        if name != "clip":
            _write_json(folder / "generation_config.json", {"max_new_tokens": 5})
        if surgery:
            _write_json(folder / SURGERY_NAME, surgery)
        write_tokenizer(folder, sizes.vocabulary, sizes.positions)
    return out


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Draw every weight anew, in the order of ``named_modules``; biases and norms too, so that none can be lost
    unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in drawn:
                continue
            drawn.add(id(parameter))
            mean, deviation = _distribution(module, name, parameter)
            parameter.normal_(mean, deviation, generator=generator)


def _distribution(module: nn.Module, name: str, parameter: nn.Parameter) -> tuple[float, float]:
    """Mean and standard deviation of one parameter."""
    if parameter.ndim == 0:
        return math.log(1 / 0.07), 0.0  # CLIP's logit_scale, a temperature of 0.07
    if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
        return (1.0 if name == "weight" else 0.0), 0.1
    if name == "bias":
        return 0.0, 0.1
    if isinstance(module, nn.Conv2d):
        return 0.0, math.sqrt(2 / parameter[0].numel())
    return 0.0, math.sqrt(1 / parameter.shape[-1])


def _config(sizes: Size, architecture: str) -> dict[str, Any]:
    """config.json of a BLIP or a CLIP."""
    ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    vision = sizes.vision.config() | {"image_size": sizes.image, "patch_size": sizes.patch}
    text = sizes.text.config() | {
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.positions,
        "pad_token_id": ids["[PAD]"],
        "eos_token_id": ids["[SEP]"],
    }
    own: dict[str, Any]
    if architecture == "CLIPModel":
        own = {"model_type": "clip"}
        vision["projection_dim"] = text["projection_dim"] = sizes.projection
        text["bos_token_id"] = ids["[CLS]"]
    else:
        own = {"model_type": "blip", "image_text_hidden_size": sizes.projection}
        text |= {"encoder_hidden_size": sizes.vision.hidden, "bos_token_id": ids["[DEC]"], "sep_token_id": ids["[SEP]"]}
    common = {"architectures": [architecture], "dtype": "float32", "projection_dim": sizes.projection}
    return common | own | {"vision_config": vision, "text_config": text}


def _student(name: str, image: int) -> list[dict[str, Any]]:
    """The surgery that replaces the vision tower by a MobileViT."""
    config = {"image_height": image, "image_width": image}
    return [{"op": "replace_vision_tower", "student": name, "config": config}]


def _image_processor(name: str, image: int) -> dict[str, Any]:
    square = {"height": image, "width": image}
    common = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
    if name != "clip":
        return common | {"image_processor_type": "BlipImageProcessor", "size": square}
    return common | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": image},
        "do_center_crop": True,
        "crop_size": square,
    }


def _write_json(path: Path, value: dict[str, Any] | list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
"""Their ids are their places here. Texts are framed by [CLS] and [SEP]; [DEC] starts an answer."""
_WORDS = """
    a an the is are of in this there what which how many color shape photo picture image
    yes no black blue brown gray green red teal yellow circle rectangle triangle square
"""


def write_tokenizer(folder: Path, vocabulary: int, max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``: exactly ``vocabulary`` tokens, so that every id that a
    model with as many can generate is a word."""
    characters = string.ascii_lowercase + string.digits
    tokens = [*SPECIAL_TOKENS, *_WORDS.split(), *characters, *string.punctuation, *(f"##{c}" for c in characters)]
    tokens = list(dict.fromkeys(tokens))[:vocabulary]
    tokens += [f"word{index}" for index in range(len(tokens), vocabulary)]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token")
    settings: dict[str, str | int] = dict(zip(names, SPECIAL_TOKENS, strict=True))
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
