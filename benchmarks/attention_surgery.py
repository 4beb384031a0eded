"""Halve the heads of one cross-attention: vlm-edge beside Torch-Pruning, each held against the masked dense module.

    python benchmarks/attention_surgery.py            # Torch-Pruning is left out if it is not installed
    pip install --no-deps torch-pruning==1.6.1        # for the comparison

The module is transformers' BlipTextAttention, 8 heads of 8 at width 64, with keys and values of 32, 64 and 96. The
reference is the dense module with the other heads masked, where a head counts as kept if its query rows are still
there. Torch-Pruning is used as its documentation says, and its user's part (the module's head counts) is done for it.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.blip.configuration_blip import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextAttention

from vlm_edge.families.base import AttentionRole, AttentionSite
from vlm_edge.surgery.heads import mask_heads, prune_heads

WIDTH, HEADS, HEAD_DIM, KEEP = 64, 8, 8, 4
KEY_WIDTHS = (32, 64, 96)
SITE = AttentionSite(
    path="attention.self",
    role=AttentionRole.CROSS,
    component="text_encoder",
    num_heads=HEADS,
    head_dim=HEAD_DIM,
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    out="attention.output.dense",
    num_heads_attr="num_attention_heads",
    all_head_size_attr="all_head_size",
)


class CrossAttention(nn.Module):
    """One attention from text (batch, tokens, WIDTH) to an image (batch, tokens, key_width)."""

    def __init__(self, key_width: int) -> None:
        super().__init__()
        config = BlipTextConfig(hidden_size=WIDTH, num_attention_heads=HEADS, encoder_hidden_size=key_width)
        self.attention = BlipTextAttention(config, is_cross_attention=True)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        out: Tensor = self.attention(text, encoder_hidden_states=image)[0]
        return out


def with_vlm_edge(model: CrossAttention, _: tuple[Tensor, Tensor]) -> None:
    prune_heads(model, SITE, [0, 2, 3, 6])


def with_torch_pruning(model: CrossAttention, inputs: tuple[Tensor, Tensor], *, pruning_ratio: float) -> None:
    import torch_pruning

    module: Any = model.attention.self
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=pruning_ratio,
        head_pruning_ratio=1 - KEEP / HEADS,
        prune_num_heads=True,
        prune_head_dims=False,
        num_heads=dict.fromkeys((module.query, module.key, module.value), HEADS),
        ignored_layers=[model.attention.output.dense],
    )
    pruner.step()
    module.num_attention_heads = pruner.num_heads[module.query]
    module.all_head_size = module.query.out_features


def kept_heads(dense: CrossAttention, pruned: CrossAttention) -> list[int]:
    """Heads whose query rows, in full, are rows of the pruned query projection."""
    left = {tuple(row.tolist()) for row in pruned.attention.self.query.weight}
    rows = [tuple(row.tolist()) in left for row in dense.attention.self.query.weight]
    return [head for head in range(HEADS) if all(rows[head * HEAD_DIM : (head + 1) * HEAD_DIM])]


@torch.no_grad()
def outcome(prune: Callable[[CrossAttention, tuple[Tensor, Tensor]], None], key_width: int) -> str:
    """One cell of the table."""
    torch.manual_seed(0)
    dense = CrossAttention(key_width).eval()
    inputs = torch.randn(2, 7, WIDTH), torch.randn(2, 11, key_width)
    pruned = copy.deepcopy(dense)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prune(pruned, inputs)
        result = pruned(*inputs)
    except (RuntimeError, ValueError, KeyError, IndexError, AssertionError) as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:60]}"
    keep = kept_heads(dense, pruned)
    if not keep:
        return "no whole head left"
    with mask_heads(dense, SITE, keep):
        error_size = float((result - dense(*inputs)).abs().max())
    rows = [getattr(pruned.attention.self, name).out_features for name in ("query", "key", "value")]
    return f"{len(keep)} of {HEADS} heads, q/k/v rows {rows}, max abs error {error_size:.1e}"


def main() -> None:
    tools: dict[str, Callable[[CrossAttention, tuple[Tensor, Tensor]], None]] = {"vlm-edge": with_vlm_edge}
    if importlib.util.find_spec("torch_pruning"):
        for ratio in (0.5, 0.0):
            tools[f"torch-pruning, pruning_ratio={ratio}"] = partial(with_torch_pruning, pruning_ratio=ratio)
    else:
        print("torch-pruning is not installed: vlm-edge alone")
    for key_width in KEY_WIDTHS:
        print(f"\nquery width {WIDTH}, key and value width {key_width}; half of {HEADS} heads wanted")
        for name, prune in tools.items():
            print(f"  {name:34} {outcome(prune, key_width)}")


if __name__ == "__main__":
    main()
