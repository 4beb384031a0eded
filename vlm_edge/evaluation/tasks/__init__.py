"""The table of tasks, each with its evaluation."""

from __future__ import annotations

from vlm_edge.data.kinds import TaskKind
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.tasks.base import TaskEvaluation
from vlm_edge.evaluation.tasks.captioning import CAPTIONING
from vlm_edge.evaluation.tasks.classification import CLASSIFICATION
from vlm_edge.evaluation.tasks.hallucination import HALLUCINATION
from vlm_edge.evaluation.tasks.retrieval import RETRIEVAL
from vlm_edge.evaluation.tasks.vqa import VQA
from vlm_edge.processing.manifest import PipelineKind
from vlm_edge.runtime.capabilities import MEANINGS, Pipeline
from vlm_edge.runtime.pipeline import PIPELINES

TASKS: dict[TaskKind, TaskEvaluation] = {
    task.kind: task for task in (VQA, CLASSIFICATION, RETRIEVAL, CAPTIONING, HALLUCINATION)
}


def tasks_of(pipeline: Pipeline | type[Pipeline]) -> list[TaskKind]:
    """The kinds of task that a pipeline can do."""
    return [kind for kind, task in TASKS.items() if not pipeline.capabilities.isdisjoint(task.needs)]


def tasks_of_kind(kind: PipelineKind) -> list[TaskKind]:
    """The kinds of task that pipelines of a kind can do."""
    return tasks_of(PIPELINES[kind])


def task_for(pipeline: Pipeline, kind: TaskKind) -> TaskEvaluation:
    """The evaluation of a task that a pipeline is to do.

    Raises:
        VlmEdgeError: the pipeline has none of the capabilities that the task needs.
    """
    if kind not in tasks_of(pipeline):
        able = " and ".join(MEANINGS[each] for each in sorted(pipeline.capabilities))
        raise VlmEdgeError(
            f"a {pipeline.manifest.pipeline} pipeline cannot do a task of kind {kind}: it {able}",
            f"it can do: {', '.join(sorted(tasks_of(pipeline)))}",
        )
    return TASKS[kind]
