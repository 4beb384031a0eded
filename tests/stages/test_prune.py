"""The prune stage on tiny checkpoints: what it writes, what it proves, and what it refuses."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from color_task import write_color_task
from hypothesis import given
from hypothesis import strategies as st
from known_facts import known
from pydantic import ValidationError
from torch import Tensor

from vlm_edge.core.artifact import checkpoint_artifact, digest_folder
from vlm_edge.core.stage import StageInputs, StageWork, TaskSpec
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import AttentionRole
from vlm_edge.families.loading import LoadedCheckpoint, load_checkpoint, save_checkpoint
from vlm_edge.stages import head_pruning
from vlm_edge.stages.prune import SPEC, PruneConfig, Recovery
from vlm_edge.stages.training_data import load_training_set
from vlm_edge.surgery.heads import mask_heads
from vlm_edge.training.table import learner_of


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskSpec:
    return write_color_task(tmp_path_factory.mktemp("colors"))


def config_of(heads: float = 0.5, **arguments: Any) -> PruneConfig:
    recover = arguments.pop("recover", {"epochs": 2, "images_per_batch": 4, "learning_rate": 0.003})
    scope = arguments.pop("scope", "global")
    return PruneConfig.model_validate({"cross_attention": {"heads": heads, "scope": scope}, "recover": recover})


def prune(folder: Path, source: Path, task: TaskSpec, config: PruneConfig, teacher: Path | None = None) -> StageWork:
    work = StageWork(out=folder / "out", scratch=folder / "scratch", seed=5)
    for path in (work.out, work.scratch):
        path.mkdir(parents=True)
    inputs = StageInputs(checkpoint_artifact(source), teacher=checkpoint_artifact(teacher or source), task=task)
    SPEC.run(config, inputs, work)
    return work


def cross_heads(loaded: LoadedCheckpoint) -> dict[str, int]:
    return {
        site.path: site.num_heads
        for site in loaded.family.attention_sites(loaded.model)
        if site.role == AttentionRole.CROSS
    }


def logits_of(loaded: LoadedCheckpoint, task: TaskSpec, scratch: Path) -> Tensor:
    learner = learner_of(loaded)
    batch = load_training_set(task, learner, StageWork(out=scratch, scratch=scratch)).batch([0, 1, 2])
    with torch.no_grad():
        return learner.logits(learner.encode(batch), batch)


@pytest.fixture(scope="module")
def pruned(tiny_blip: Path, task: TaskSpec, tmp_path_factory: pytest.TempPathFactory) -> StageWork:
    return prune(tmp_path_factory.mktemp("pruned"), tiny_blip, task, config_of())


def test_half_of_the_heads_are_gone_and_the_checkpoint_loads(pruned: StageWork, tiny_blip: Path) -> None:
    dense, loaded = load_checkpoint(tiny_blip), load_checkpoint(pruned.out)
    left = cross_heads(loaded)
    assert sum(cross_heads(dense).values()) == 16
    assert sum(left.values()) == 8
    assert left == {path: len(heads) for path, heads in pruned.facts["heads_kept"].items()}
    operations = json.loads((pruned.out / "surgery.json").read_text())
    assert all(operation["op"] == "prune_heads" for operation in operations)
    assert {operation["site"] for operation in operations} <= set(left)
    assert pruned.facts["parameters"] == sum(parameter.numel() for parameter in loaded.model.parameters())
    # a head of 8 dimensions at width 32: three matrices with bias, and a column block
    assert pruned.facts["parameters_before"] - pruned.facts["parameters"] == 8 * 8 * (4 * 32 + 3)


def test_the_heads_with_the_highest_normalised_importance_stay(pruned: StageWork) -> None:
    scores: list[tuple[float, str, int]] = []
    for path, values in pruned.facts["importance"].items():
        norm = sum(value**2 for value in values) ** 0.5
        scores += [(value / norm, path, head) for head, value in enumerate(values)]
    best = {path: max(entry for entry in scores if entry[1] == path) for _, path, _ in scores}
    rest = sorted((entry for entry in scores if entry not in best.values()), reverse=True)
    kept = {(path, head) for path, heads in pruned.facts["heads_kept"].items() for head in heads}
    assert kept == {entry[1:] for entry in [*best.values(), *rest[: 8 - len(best)]]}


def test_the_facts_tell_parity_recovery_and_accuracies(pruned: StageWork) -> None:
    assert 0 <= pruned.facts["pruned_vs_masked_max_abs_error"] < 1e-5
    recovery = pruned.facts["recovery"]
    assert (recovery["steps"], recovery["images"], recovery["questions"]) == (6, 12, 30)
    first, last = (entry["teacher"] + entry["labels"] for entry in (recovery["losses"][0], recovery["losses"][-1]))
    assert last < first
    names = [f"calibration_accuracy_{state}" for state in ("dense", "pruned", "recovered")]
    assert all(0 <= pruned.facts[name] <= 1 for name in names)
    known("prune", pruned.facts)


def test_recovery_leaves_the_vision_tower_alone(pruned: StageWork, tiny_blip: Path) -> None:
    dense, after = (load_checkpoint(folder).model.state_dict() for folder in (tiny_blip, pruned.out))
    changed = {
        name for name in after if after[name].shape != dense[name].shape or not torch.equal(after[name], dense[name])
    }
    assert changed
    assert not any(name.startswith("vision_model.") for name in changed)
    assert "text_encoder.encoder.layer.0.attention.self.value.weight" in changed


def test_the_same_inputs_give_the_same_bytes(
    pruned: StageWork, tiny_blip: Path, task: TaskSpec, tmp_path: Path
) -> None:
    again = prune(tmp_path, tiny_blip, task, config_of())
    assert digest_folder(again.out) == digest_folder(pruned.out)
    assert again.facts == pruned.facts


@pytest.mark.parametrize("scope", ["global", "site"])
def test_without_recovery_the_saved_model_is_the_masked_one(
    scope: str, tiny_blip: Path, task: TaskSpec, tmp_path: Path
) -> None:
    work = prune(tmp_path, tiny_blip, task, config_of(0.25, scope=scope, recover=None))
    dense, loaded = load_checkpoint(tiny_blip), load_checkpoint(work.out)
    kept = work.facts["heads_kept"]
    assert sum(map(len, kept.values())) == 12
    if scope == "site":
        assert [len(heads) for heads in kept.values()] == [3, 3, 3, 3]
    sites = {site.path: site for site in dense.family.attention_sites(dense.model)}
    with ExitStack() as masks:
        found = logits_of(loaded, task, tmp_path)
        for path, heads in kept.items():
            masks.enter_context(mask_heads(dense.model, sites[path], heads))
        expected = logits_of(dense, task, tmp_path)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert "recovery" not in work.facts


def test_a_pruned_checkpoint_prunes_again_against_its_dense_teacher(
    pruned: StageWork, tiny_blip: Path, task: TaskSpec, tmp_path: Path
) -> None:
    work = prune(tmp_path, pruned.out, task, config_of(recover={"epochs": 1}), teacher=tiny_blip)
    loaded = load_checkpoint(work.out)
    assert sum(cross_heads(loaded).values()) == 4
    assert len(loaded.surgery) > len(load_checkpoint(pruned.out).surgery)


@pytest.mark.parametrize("train", ["text", "all"])
def test_a_model_with_another_vision_tower_recovers_on_its_own_features(
    train: str, tiny_blip: Path, task: TaskSpec, tmp_path: Path
) -> None:
    other = load_checkpoint(tiny_blip)
    with torch.no_grad():
        other.model.get_submodule("vision_model.post_layernorm").weight.mul_(0.5)  # type: ignore[operator]
    save_checkpoint(tmp_path / "other", other.model, other)
    recover = {"epochs": 1, "images_per_batch": 4, "train": train, "precision": "float32"}
    work = prune(tmp_path, tmp_path / "other", task, config_of(recover=recover), teacher=tiny_blip)
    tower = {name: value for name, value in load_checkpoint(work.out).model.state_dict().items() if "vision" in name}
    unchanged = all(torch.equal(value, other.model.state_dict()[name]) for name, value in tower.items())
    assert unchanged == (train == "text")
    caches = {path.name for path in work.scratch.iterdir() if path.name.endswith("features")}
    assert caches == ({"features", "teacher_features"} if train == "text" else {"teacher_features"})


def test_a_family_without_cross_attention_names_the_next_step(tiny_clip: Path, task: TaskSpec, tmp_path: Path) -> None:
    with pytest.raises(VlmEdgeError, match=r"CLIPModel \(family clip.*\) has no cross-attention") as caught:
        prune(tmp_path, tiny_clip, task, config_of())
    assert "distill" in str(caught.value.hint)


def test_a_pruned_model_that_is_not_the_masked_one_is_refused(
    tiny_blip: Path, task: TaskSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, site: Any, _: Any) -> None:
        with torch.no_grad():
            model.get_submodule(site.out).weight.mul_(1.01)

    monkeypatch.setattr(head_pruning, "prune_heads", wrong)
    with pytest.raises(VlmEdgeError, match="the pruned model differs from the masked one by"):
        prune(tmp_path, tiny_blip, task, config_of())


@pytest.mark.parametrize("heads", [0, 1, -0.5, 1.5])
def test_a_fraction_outside_zero_to_one_is_a_config_error(heads: float) -> None:
    with pytest.raises(ValidationError, match=r"cross_attention\.heads"):
        PruneConfig.model_validate({"cross_attention": {"heads": heads}})


def test_the_quickstarts_words_are_a_config_and_unknown_ones_are_not() -> None:
    config = PruneConfig.model_validate({"cross_attention": {"heads": 0.5}, "recover": {"epochs": 2}})
    assert isinstance(config.recover, Recovery)
    assert config.recover.epochs == 2
    assert PruneConfig.model_validate({"cross_attention": {"heads": 0.5}}).recover == Recovery()
    with pytest.raises(ValidationError, match=r"recover\.epoch"):
        PruneConfig.model_validate({"cross_attention": {"heads": 0.5}, "recover": {"epoch": 2}})


@pytest.mark.parametrize(
    ("heads", "fraction", "scope", "message", "hint"),
    [
        ([10, 10], 0.01, "global", "0.01 of 20 heads in 2 modules is less than one head\n", "at least 0.05"),
        ([4, 4], 0.1, "site", "less than one head a module", "at least 0.25"),
        ([4, 4], 0.95, "global", "0.95 leaves a module without a head", "at most 0.75"),
        ([4, 2], 0.8, "site", "0.8 leaves a module without a head", "at most 0.5"),
    ],
)
def test_a_fraction_that_removes_nothing_or_everything_says_what_would_work(
    heads: list[int], fraction: float, scope: head_pruning.Scope, message: str, hint: str
) -> None:
    with pytest.raises(VlmEdgeError, match=message) as caught:
        head_pruning.heads_left(heads, fraction, scope)
    assert hint in str(caught.value.hint)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.floats(0.01, 0.99))
def test_heads_left_is_the_rounded_share(heads: list[int], fraction: float) -> None:
    total = sum(heads)
    removed = round(fraction * total)
    if 0 < removed <= total - len(heads):
        assert head_pruning.heads_left(heads, fraction, "global") == [total - removed]
    else:
        with pytest.raises(VlmEdgeError):
            head_pruning.heads_left(heads, fraction, "global")
