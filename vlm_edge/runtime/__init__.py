"""The runtime of the device: images and text in, answers out. No torch, no transformers."""

from __future__ import annotations

from vlm_edge.runtime.answer_head import AnswerHeadPipeline
from vlm_edge.runtime.captioning import CaptioningPipeline
from vlm_edge.runtime.dual_encoder import DualEncoderPipeline
from vlm_edge.runtime.embedding import EmbeddingPipeline
from vlm_edge.runtime.generate import GeneratePipeline, Request
from vlm_edge.runtime.matching import MatchingPipeline
from vlm_edge.runtime.pipeline import load_pipeline
from vlm_edge.runtime.vqa import VqaPipeline

__all__ = [
    "AnswerHeadPipeline",
    "CaptioningPipeline",
    "DualEncoderPipeline",
    "EmbeddingPipeline",
    "GeneratePipeline",
    "MatchingPipeline",
    "Request",
    "VqaPipeline",
    "load_pipeline",
]
