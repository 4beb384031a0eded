"""The table of learners, by the kind of pipeline."""

from __future__ import annotations

from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.base import Family
from vlm_edge.families.loading import LoadedCheckpoint
from vlm_edge.processing.manifest import PipelineKind
from vlm_edge.training.comparing import CandidateLearner, ChoiceLearner, PairLearner
from vlm_edge.training.learner import AnswerLearner, Learner
from vlm_edge.training.prompting import PromptLearner

LEARNERS: dict[PipelineKind, type[Learner]] = {
    "vqa": AnswerLearner,
    "captioning": AnswerLearner,
    "generate": PromptLearner,
    "dual_encoder": CandidateLearner,
    "matching": PairLearner,
    "answer_head": ChoiceLearner,
}


def learner_of(loaded: LoadedCheckpoint) -> Learner:
    """A checkpoint's learner; errors as :func:`require_trainable`."""
    require_trainable(loaded.family)
    return LEARNERS[loaded.family.pipeline](loaded)


def require_trainable(family: Family) -> None:
    """
    Raises:
        VlmEdgeError: the family's models read no text and give no answer, so there is no loss to train on.
    """
    if family.pipeline not in LEARNERS:
        raise VlmEdgeError(
            f"{family.name}: this family reads no text and answers nothing, so there is no loss to train on: no "
            "recovery after pruning and no distillation",
            "leave the stages that train out of the recipe for this model",
        )
