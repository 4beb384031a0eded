"""Language models that see images, at published sizes with random weights, for export_memory.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
IDS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
NEW_TOKENS = 32


def smolvlm_256m(folder: Path, *, tower_layers: int = 12, text_layers: int = 30) -> None:
    """HuggingFaceTB/SmolVLM-256M-Instruct, or fewer layers of it."""
    import transformers

    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>", *places)
    tower = {
        "hidden_size": 768, "num_hidden_layers": tower_layers, "num_attention_heads": 12, "intermediate_size": 3072,
        "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": text_layers, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 1536, "vocab_size": 49280,
        "max_position_embeddings": 8192, "rope_theta": 100000,
    }  # fmt: skip
    config = transformers.SmolVLMConfig(
        vision_config=tower, text_config=text | IDS, image_token_id=259, scale_factor=4, tie_word_embeddings=False
    )
    image = {
        "image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 2048}, "resample": 1,
        "max_image_size": {"longest_edge": 512}, "do_image_splitting": True,
    }  # fmt: skip
    _write(folder, transformers.SmolVLMForConditionalGeneration(config), image, special)
    (folder / "chat_template.jinja").write_text(SMOLVLM_TEMPLATE, encoding="utf-8")


def blip2_opt_125m(folder: Path) -> None:
    """Salesforce/blip2-opt-2.7b's tower (ViT-g, 39 layers) and Q-Former, and facebook/opt-125m."""
    import transformers

    text = {"model_type": "opt", "vocab_size": 50304, "ffn_dim": 3072, "hidden_size": 768, "num_hidden_layers": 12}
    config = transformers.Blip2Config(
        vision_config={},
        qformer_config={},
        text_config=text | {"num_attention_heads": 12, "max_position_embeddings": 2048} | IDS,
        image_token_index=259,
    )
    image = {"image_processor_type": "BlipImageProcessor", "size": {"height": 224, "width": 224}}
    _write(folder, transformers.Blip2ForConditionalGeneration(config), image, ("<image>",))


def llava_0_7b(folder: Path) -> None:
    """llava-hf/llava-1.5-7b-hf's tower (CLIP ViT-L/14 at 336 pixels) before a Llama of 20 layers: its graph alone has
    2.7 GB of weights, beyond what a protobuf message holds."""
    import transformers

    tower = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 1536, "num_hidden_layers": 20, "num_attention_heads": 12,
        "num_key_value_heads": 12, "intermediate_size": 4096, "vocab_size": 32064, "max_position_embeddings": 4096,
    }  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=text | IDS, image_token_index=259, tie_word_embeddings=False
    )
    image = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
    }  # fmt: skip
    _write(folder, transformers.LlavaForConditionalGeneration(config), image, ("<image>",))


def _write(folder: Path, model: Any, image: dict[str, Any], special: Sequence[str]) -> None:
    from torch import nn

    from vlm_edge.zoo.create import randomize

    randomize(model, 0)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            nn.init.ones_(module.weight)
    model.generation_config.max_new_tokens = NEW_TOKENS
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    write_bytes_tokenizer(folder, special)


def write_bytes_tokenizer(folder: Path, special: Sequence[str]) -> None:
    """A tokenizer of single bytes, <s>, </s>, <pad>, and ``special`` from id 259 on."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokens = ("<s>", "</s>", "<pad>", *special)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "model_max_length": 8192}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
