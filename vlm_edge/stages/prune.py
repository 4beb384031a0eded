"""prune: remove cross-attention heads that matter least, then recover against the dense teacher.

A head's importance is the first-order one of Michel et al. 2019 on the task's calibration samples
(``surgery.heads.head_importance``). The heads are cut out of the weights, the result is checked against
the same model with those heads masked, and a short training on the teacher's answers wins back what was lost.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vlm_edge.core.artifact import ArtifactKind
from vlm_edge.core.stage import Named, StageConfig, StageInputs, StageSpec, StageWork, fault_of
from vlm_edge.errors import VlmEdgeError
from vlm_edge.facts import PruneFacts
from vlm_edge.stages.training_config import Recovery


class CrossAttentionPruning(StageConfig):
    """The share of heads to remove, and how it is spread over the cross-attention modules."""

    heads: float = Field(gt=0, lt=1, description="fraction of the cross-attention heads that is removed")
    scope: Literal["global", "site"] = Field(
        default="global",
        description="global: rank the heads of all modules together (each keeps one at least); "
        "site: the same fraction from every module",
    )


class Importance(StageConfig):
    """The samples that the importance is computed on."""

    samples: int = Field(
        default=256, ge=1, le=10_000_000, description="calibration samples; fewer if the data set has fewer"
    )


class PruneConfig(StageConfig):
    """``{cross_attention: {heads: 0.5}, recover: {epochs: 2}}``; ``recover: null`` leaves the cut as it is."""

    cross_attention: CrossAttentionPruning
    importance: Importance = Importance()
    recover: Recovery | None = Recovery()


def run(config: PruneConfig, inputs: StageInputs, work: StageWork) -> None:
    """Write the pruned checkpoint to ``work.out``.

    Raises:
        VlmEdgeError: the model has no cross-attention, the fraction removes no head or a module's last one, or the
            pruned model is not the masked one.
    """
    from vlm_edge.families.loading import load_checkpoint, save_checkpoint
    from vlm_edge.stages import head_pruning, training_data
    from vlm_edge.training.table import learner_of

    assert inputs.teacher is not None
    assert inputs.task is not None
    source = load_checkpoint(inputs.source.path)
    cut = config.cross_attention
    sites = head_pruning.cross_attention_sites(source)
    counts = head_pruning.heads_left([site.num_heads for site in sites], cut.heads, cut.scope)
    learner = learner_of(source)
    calibration = training_data.load_training_set(
        inputs.task, learner, work, split="calibration", limit=config.importance.samples
    )
    samples = head_pruning.CalibrationSamples(learner, calibration, work)
    scores = samples.importance(sites)
    keep = head_pruning.choose_heads(scores, counts, cut.scope)
    work.facts["importance"] = {site.path: score.tolist() for site, score in zip(sites, scores, strict=True)}
    work.facts["heads_kept"] = {site.path: list(heads) for site, heads in zip(sites, keep, strict=True)}
    work.facts["parameters_before"] = sum(parameter.numel() for parameter in source.model.parameters())
    samples.prune_and_check(sites, keep)
    work.facts["parameters"] = sum(parameter.numel() for parameter in source.model.parameters())
    if config.recover is not None:
        teacher = learner_of(load_checkpoint(inputs.teacher.path))
        data = training_data.load_training_set(inputs.task, learner, work, limit=config.recover.samples)
        work.facts["recovery"] = head_pruning.recover(learner, teacher, data, config.recover, work)
        work.facts["calibration_accuracy_recovered"] = samples.accuracy()
    operations = [
        {"op": "prune_heads", "site": site.path, "keep": list(heads)}
        for site, heads in zip(sites, keep, strict=True)
        if len(heads) < site.num_heads
    ]
    save_checkpoint(work.out, source.model.cpu(), source, operations)


def splits(config: PruneConfig) -> tuple[Literal["calibration", "train"], ...]:
    """The parts of the task's data that the stage reads."""
    return ("calibration",) if config.recover is None else ("calibration", "train")


def faults(config: PruneConfig, named: Named) -> list[tuple[str, str]]:
    """Faults that the model's outline shows: no heads to remove, too few of them, parts that can't be trained."""
    from vlm_edge.families.loading import outline_checkpoint
    from vlm_edge.stages import head_pruning
    from vlm_edge.training.table import require_trainable

    try:
        outline = outline_checkpoint(named.model)
        sites = head_pruning.cross_attention_sites(outline)
        head_pruning.heads_left(
            [site.num_heads for site in sites], config.cross_attention.heads, config.cross_attention.scope
        )
        require_trainable(outline.family)  # importance takes gradients, even without a recovery
    except VlmEdgeError as error:
        return [fault_of(error, "prune", config)]
    return []


SPEC = StageSpec(
    name="prune",
    version=3,
    config=PruneConfig,
    check=faults,
    splits=splits,
    source=ArtifactKind.CHECKPOINT,
    output=ArtifactKind.CHECKPOINT,
    run=run,
    facts=PruneFacts,
    packages=("torch", "transformers", "pillow"),
    reads=frozenset({"teacher", "task"}),
    summary="Remove the least important cross-attention heads, then train to recover against the dense teacher.",
)
