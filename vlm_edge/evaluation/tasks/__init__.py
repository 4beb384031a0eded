"""The table of tasks: how each kind is evaluated."""

from __future__ import annotations

from vlm_edge.data.dataset import TaskKind
from vlm_edge.evaluation.tasks.base import TaskEvaluation
from vlm_edge.evaluation.tasks.captioning import CAPTIONING
from vlm_edge.evaluation.tasks.classification import CLASSIFICATION
from vlm_edge.evaluation.tasks.hallucination import HALLUCINATION
from vlm_edge.evaluation.tasks.retrieval import RETRIEVAL
from vlm_edge.evaluation.tasks.vqa import VQA

TASKS: dict[TaskKind, TaskEvaluation] = {
    task.kind: task for task in (VQA, CLASSIFICATION, RETRIEVAL, CAPTIONING, HALLUCINATION)
}
