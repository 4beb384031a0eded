"""LLaVA: prompts against transformers' processor, requests that can't be, and its pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_vlm
import transformers
from family_checkpoints import Exported
from tiny_llava import TEMPLATE
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_edge.core.stage import SilentProgress
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.tasks import TASKS
from vlm_edge.runtime import Request

SUBJECTS = ["LLaVA-1.5"]


def test_prompts_are_apply_chat_template(subject: Exported) -> None:
    processor = transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(subject.checkpoint),
        tokenizer=transformers.AutoTokenizer.from_pretrained(subject.checkpoint),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    tiny_vlm.check_processor(subject, processor, [(40, 33), (64, 100), (31, 90)])


def test_a_pipeline_answers_questions_one_by_one_and_in_batches(subject: Exported) -> None:
    pipeline = subject.pipeline
    images = tiny_vlm.photos(2, [(40, 33), (64, 100), (31, 90)])
    questions = ["what?", "which colour has it?", "a"]
    one_by_one = [pipeline.answer(image, question) for image, question in zip(images, questions, strict=True)]
    features = pipeline.encode_images(images, batch_size=2)
    assert pipeline.answer_batch(features, questions, batch_size=2) == one_by_one
    assert pipeline.generate([], batch_size=2) == []
    with pytest.raises(VlmEdgeError, match="3 rows of features for 1 texts"):
        pipeline.answer_ids(features, ["what?"])


def test_requests_that_cannot_be_are_refused(subject: Exported) -> None:
    pipeline = subject.pipeline
    (image,) = tiny_vlm.photos(3, [(40, 33)])
    with pytest.raises(VlmEdgeError, match="11 images in one request; this model takes 0 to 10"):
        pipeline.generate([Request("what?", [image] * 11)])
    with pytest.raises(VlmEdgeError, match="question contains '<image>', which stands for an image"):
        pipeline.generate([Request("what is <image>?", [image])])
    with pytest.raises(VlmEdgeError, match="the prompt holds '<image>' 1 times for 2 images"):
        pipeline.generate([Request(images=[image] * 2, prompt="<image> what?")])
    with pytest.raises(VlmEdgeError, match="2117 tokens; this model reads at most 2048"):
        pipeline.generate([Request(images=[image], prompt="a" * 2100 + "<image>")])
    with pytest.raises(
        VlmEdgeError, match="tokens; this model reads at most 2048"
    ):  # the end, not an image, is too much
        pipeline.generate([Request(images=[image], prompt="<image>" + "a" * 2100)])
    assert pipeline.generate([]) == pipeline.generate_ids([]) == []
    with pytest.raises(VlmEdgeError, match="max_new_tokens: 0"):
        pipeline.generate([Request("what?", [image])], max_new_tokens=0)


def test_ten_images_in_one_request(subject: Exported) -> None:
    request = Request("how many?", tiny_vlm.photos(4, [(30 + side, 40) for side in range(10)]))
    (answer,) = subject.pipeline.generate_ids([request], max_new_tokens=tiny_vlm.NEW_TOKENS)
    assert answer == tiny_vlm.generated(subject, request)


def test_vqa_is_evaluated_through_the_pipeline(subject: Exported, tmp_path: Path) -> None:
    image = tiny_vlm.photos(5, [(40, 33)])[0]
    image.save(tmp_path / "photo.png")
    samples = [
        Sample(id=str(index), image=tmp_path / "photo.png", text=text, answers=("red",))
        for index, text in enumerate(["what?", "which colour?"])
    ]
    dataset = Dataset(name="two", kind="vqa", split="test", samples=tuple(samples), digest="0")
    rows = TASKS["vqa"].run(subject.pipeline, dataset, SilentProgress())
    assert list(rows.predictions) == [subject.pipeline.answer(image, sample.text) for sample in samples]
