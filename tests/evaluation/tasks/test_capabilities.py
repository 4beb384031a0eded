"""Tasks and pipelines meet in capabilities alone: a toy of each, and the files that name a kind."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_graphs import IMAGE, random_images

import vlm_edge
from vlm_edge.core.stage import SilentProgress
from vlm_edge.data.dataset import Dataset, Sample
from vlm_edge.errors import VlmEdgeError
from vlm_edge.evaluation.accuracy import outcomes_of, run_task
from vlm_edge.evaluation.comparison import describe
from vlm_edge.evaluation.queries import queries_of
from vlm_edge.evaluation.tasks import TASKS, tasks_of
from vlm_edge.evaluation.tasks.base import Rows, TaskEvaluation, every_image
from vlm_edge.runtime.pipeline import PIPELINES

PACKAGE = Path(vlm_edge.__file__).parent
COLORS = ("red", "green", "blue")


class Colorist:
    """A toy kind of pipeline: it captions an image with its strongest color."""

    capabilities = frozenset({"captions"})
    manifest = SimpleNamespace(pipeline="colorist", image=IMAGE)

    def caption(self, image, prompt=""):
        return self.decode(self.caption_ids([image], prompt)[0])

    def caption_ids(self, images, prompt=""):
        assert prompt == "it is"
        return [[int(image.mean((0, 1)).argmax())] for image in images]

    def decode(self, ids):
        return COLORS[ids[0]]


def dataset(folder, kind):
    samples = []
    for number, image in enumerate(random_images(6)):
        path = folder / f"{number}.png"
        Image.fromarray(image).save(path)
        samples.append(Sample(f"s{number}", path, "", (COLORS[int(image.mean((0, 1)).argmax())],)))
    return Dataset("toy", kind, "test", tuple(samples), "digest", prompts=("it is",))


def test_a_toy_pipeline_does_the_tasks_of_its_capability_and_no_other(tmp_path):
    pipeline, data = Colorist(), dataset(tmp_path, "captioning")
    assert tasks_of(pipeline) == ["captioning"]
    rows = run_task(pipeline, data, SilentProgress(), place="toy")
    assert list(rows.predictions) == [sample.answers[0] for sample in data.samples]
    image = random_images(1)[0]
    (query,) = queries_of(pipeline, [(image, "")], {"task": "captioning", "labels": (), "prompts": ("it is",)})
    assert query() == COLORS[int(image.mean((0, 1)).argmax())]
    said = "toy: a colorist pipeline cannot do a task of kind vqa: it writes texts about images"
    with pytest.raises(VlmEdgeError, match=said) as refused:
        run_task(pipeline, dataset(tmp_path, "vqa"), SilentProgress(), place="toy")
    assert refused.value.hint == "it can do: captioning"


def test_a_toy_task_is_one_row(tmp_path, monkeypatch):
    def run(pipeline, data, progress):
        ids, samples, rows, unreadable = every_image(
            lambda images: np.array(pipeline.caption_ids(images, "it is")), pipeline.manifest.image, data, progress
        )
        said = [pipeline.decode(ids[row]) for row in rows]
        right = [float(text in sample.answers) for text, sample in zip(said, samples, strict=True)]
        return Rows(samples, {"accuracy": right}, said, unreadable)

    toy = TaskEvaluation("hallucination", "color accuracy", ("captions",), run, TASKS["captioning"].answer)
    monkeypatch.setitem(TASKS, "hallucination", toy)
    data = dataset(tmp_path, "hallucination")
    assert tasks_of(Colorist()) == ["captioning", "hallucination"]
    found = describe(outcomes_of(data, run_task(Colorist(), data, SilentProgress(), place="toy"), "engine"))
    assert [(each.metric, each.value, each.n) for each in found] == [("accuracy", 1.0, 6)]


def test_every_pipeline_has_the_methods_of_its_capabilities():
    from vlm_edge.runtime import capabilities as module

    protocols = {"answers": module.Answers, "captions": module.Captions, "embeds": module.Embeds}
    protocols |= {"scores": module.Scores, "classifies": module.Classifies}
    assert set(protocols) == set(module.MEANINGS)
    for pipeline in PIPELINES.values():
        for capability in pipeline.capabilities:
            members = {name for name in vars(protocols[capability]) if not name.startswith("_")} - {"tokenizer"}
            assert members <= set(dir(pipeline)), (pipeline, capability)


def naming(kind: str) -> set[str]:
    """Files that hold a kind's name as a string, families left out."""
    files = [file for file in PACKAGE.rglob("*.py") if "families" not in file.parts]
    return {file.relative_to(PACKAGE).as_posix() for file in files if re.search(f'"{kind}"', file.read_text("utf-8"))}


@pytest.mark.parametrize("kind", ["answer_head", "dual_encoder", "matching", "embedding", "generate"])
def test_a_kind_of_pipeline_is_named_in_three_files_beside_its_own(kind):
    """One that trains has a row in the table of learners, too."""
    optional = {"cli/init.py", "training/table.py"}
    assert naming(kind) - optional == {
        "processing/manifest.py",
        "runtime/pipeline.py",
        "stages/export_composed.py",
    }


@pytest.mark.parametrize("kind", ["classification", "hallucination"])
def test_a_task_is_named_in_two_files_beside_the_table(kind):
    optional = {"cli/init.py", "data/easy_vqa.py", "data/sources.py"}
    assert naming(kind) - optional == {"data/kinds.py", f"evaluation/tasks/{kind}.py"}
