"""The distill stage on tiny checkpoints: it learns, says what it did, and ends the same after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from color_task import write_color_task
from known_facts import known
from learning import see
from pydantic import ValidationError
from scipy.stats import binomtest

from vlm_edge.core.artifact import Artifact, ArtifactKind, digest_file, digest_folder, folder_size_bytes
from vlm_edge.core.stage import SilentProgress, StageInputs, StageWork, TaskSpec, Ticker
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import LoadedCheckpoint, load_checkpoint, save_checkpoint
from vlm_edge.stages import distill, distill_config, distill_forecast, distill_setup, training
from vlm_edge.stages.distill_config import Augmentation, DistillConfig, student_config
from vlm_edge.stages.distill_targets import RecordedTeacher, Teacher, hold_out, record_teacher
from vlm_edge.stages.training import Minibatch
from vlm_edge.stages.training_data import load_training_set
from vlm_edge.students.mobilevit import build_vision_student
from vlm_edge.students.weights import StudentRecord, load_student, read_record, save_student, tower_digest
from vlm_edge.surgery.heads import prune_heads
from vlm_edge.training.table import learner_of
from vlm_edge.zoo import MODELS, STUDENT_WEIGHTS, ZooEntry

CONFIG = DistillConfig(epochs=4, images_per_batch=6, learning_rate=3e-3, start="random", held_out_images=0)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskSpec:
    return write_color_task(tmp_path_factory.mktemp("colors"))


def checkpoint(folder: Path) -> Artifact:
    return Artifact(ArtifactKind.CHECKPOINT, digest_folder(folder), folder)


def work_in(folder: Path, **arguments: Any) -> StageWork:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return StageWork(out=folder / "out", scratch=folder / "scratch", **arguments)


def run(
    config: DistillConfig, source: Path, task: TaskSpec, folder: Path, *, teacher: Path | None = None, **arguments: Any
) -> tuple[LoadedCheckpoint, dict[str, Any]]:
    """The new checkpoint, loaded again, and the facts."""
    work = work_in(folder, **arguments)
    distill.run(config, StageInputs(checkpoint(source), checkpoint(teacher or source), task), work)
    return load_checkpoint(work.out), known("distill", work.facts)


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn((count, 3, 32, 32), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def distilled(task: TaskSpec, tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("distilled")
    _, facts = run(CONFIG, tiny_blip, task, folder)
    return folder / "out", facts


def test_distillation_lowers_every_term_and_says_what_it_did(distilled: tuple[Path, dict[str, Any]]) -> None:
    _, facts = distilled
    losses = facts["training"]["losses"]
    for term, part in (("features", 0.9), ("answers", 0.9), ("labels", 1.0)):
        assert losses[-1][term] < part * losses[0][term], term
    assert facts["start"] == {"from": "random", "why": "start: random"}
    assert facts["student"]["name"] == "mobilevit-xxs"
    assert facts["student"]["output_stride"] == 8
    assert facts["held_out"] == {"images": 0, "questions": 0}
    assert json.loads(json.dumps(facts)) == facts


def test_the_checkpoint_holds_the_student_and_a_text_part_that_followed(
    distilled: tuple[Path, dict[str, Any]], tiny_blip: Path
) -> None:
    folder, facts = distilled
    loaded, dense = load_checkpoint(folder), load_checkpoint(tiny_blip)
    assert [operation["op"] for operation in loaded.surgery] == ["replace_vision_tower"]
    assert see(learner_of(loaded), pixels()).shape == (2, 17, 32)
    student = loaded.model.get_submodule("vision_model")
    assert sum(parameter.numel() for parameter in student.parameters()) == facts["student"]["parameters"]
    old, new = dense.model.state_dict(), loaded.model.state_dict()
    text = [name for name in old if not name.startswith("vision_model.") and old[name].is_floating_point()]
    assert text
    assert not all(torch.equal(old[name], new[name]) for name in text)
    assert (folder / "tokenizer.json").read_bytes() == (tiny_blip / "tokenizer.json").read_bytes()


def test_a_frozen_text_part_stays_as_it_was(task: TaskSpec, tiny_blip: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"text_rate": 0.0, "epochs": 1.0})
    loaded, _ = run(config, tiny_blip, task, tmp_path)
    old, new = load_checkpoint(tiny_blip).model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("vision_model."))


@dataclass
class StopAfter(SilentProgress):
    """Raises in the training's bar after some steps, as a kill would end it."""

    steps: int

    @contextmanager
    def bar(self, label: str, total: float | None) -> Iterator[Ticker]:
        taken = iter(range(self.steps))

        class Stopping:
            def advance(self, steps: float = 1.0, *, note: str | None = None) -> None:
                if note is not None and next(taken, None) is None:
                    raise KeyboardInterrupt

        yield Stopping()


def test_a_stopped_distillation_goes_on_and_gives_the_same_bytes(
    task: TaskSpec,
    tiny_blip: Path,
    tmp_path: Path,
    distilled: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "train", partial(training.train, checkpoint_seconds=0))
    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, tiny_blip, task, tmp_path, progress=StopAfter(5))
    assert (tmp_path / "scratch/distillation.pt").is_file()
    shutil.rmtree(tmp_path / "out")
    _, facts = run(CONFIG, tiny_blip, task, tmp_path)
    folder, whole = distilled
    assert facts == whole
    assert digest_folder(tmp_path / "out") == digest_folder(folder)


def test_a_pruned_text_part_keeps_its_shape(task: TaskSpec, tiny_blip: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_blip)
    site = next(site for site in loaded.family.attention_sites(loaded.model) if site.role == "cross")
    prune_heads(loaded.model, site, [0, 2])
    operation = {"op": "prune_heads", "site": site.path, "keep": [0, 2]}
    save_checkpoint(tmp_path / "pruned", loaded.model, loaded, [operation])
    config = CONFIG.model_copy(update={"epochs": 1.0})
    result, _ = run(config, tmp_path / "pruned", task, tmp_path / "run", teacher=tiny_blip)
    assert [step["op"] for step in result.surgery] == ["prune_heads", "replace_vision_tower"]
    assert result.model.get_submodule(site.q).out_features == loaded.model.get_submodule(site.q).out_features


def test_augmented_images_are_shown_to_teacher_and_student_alike(
    task: TaskSpec, tiny_blip: Path, tmp_path: Path, distilled: tuple[Path, dict[str, Any]]
) -> None:
    config = CONFIG.model_copy(update={"augment": Augmentation(shift=0.25, horizontal_flip=True)})
    _, facts = run(config, tiny_blip, task, tmp_path)
    losses, plain = facts["training"]["losses"], distilled[1]["training"]["losses"]
    assert losses[-1]["features"] < 0.9 * losses[0]["features"]
    assert losses[0]["features"] != plain[0]["features"]
    assert not (tmp_path / "scratch/teacher").exists()


def test_what_is_recorded_of_a_teacher_is_what_it_says(task: TaskSpec, tiny_blip: Path, tmp_path: Path) -> None:
    work, dense = work_in(tmp_path), learner_of(load_checkpoint(tiny_blip))
    data = load_training_set(task, dense, work)
    teacher = Teacher(dense, (32, 32), (4, 4))
    recorded = record_teacher(teacher, data, work)
    assert isinstance(recorded, RecordedTeacher)
    images, rng = np.array([7, 2, 9]), np.random.default_rng(0)
    chosen = data.choose(images, questions_per_image=2, rng=rng)
    minibatch = Minibatch(data.batch(images, chosen=chosen), images, np.concatenate(chosen), rng)
    for kept, said in zip(recorded(minibatch), teacher(minibatch), strict=True):
        assert kept.shape == said.shape
        torch.testing.assert_close(kept, said, atol=0.1, rtol=0.05)


def test_a_cache_that_would_be_too_large_is_not_made(
    task: TaskSpec, tiny_blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_edge.stages.distill_targets.MAX_CACHE_BYTES", 1000)
    work, dense = work_in(tmp_path), learner_of(load_checkpoint(tiny_blip))
    data = load_training_set(task, dense, work)
    teacher = Teacher(dense, (32, 32), (4, 4))
    assert record_teacher(teacher, data, work) is teacher


def test_held_out_images_are_the_last_and_not_trained_on(task: TaskSpec, tiny_blip: Path, tmp_path: Path) -> None:
    work, dense = work_in(tmp_path), learner_of(load_checkpoint(tiny_blip))
    data = load_training_set(task, dense, work)
    kept, held = hold_out(data, 200)
    assert held == [11]
    assert kept.usable_images.tolist() == list(range(11))
    assert hold_out(data, 0)[1] == []
    _, facts = run(CONFIG.model_copy(update={"held_out_images": 5, "epochs": 1.0}), tiny_blip, task, tmp_path / "run")
    assert facts["held_out"]["images"] == 1
    assert facts["held_out"]["questions"] == 3
    agreeing = round(3 * facts["held_out"]["agreement"])
    interval = binomtest(agreeing, 3).proportion_ci(method="wilson")
    found = (facts["held_out"]["agreement_low"], facts["held_out"]["agreement_high"])
    assert found == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert facts["training"]["images"] == 11


@pytest.fixture
def shipped(tiny_blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights ``tiny`` that belong to tiny_blip's tower, in the zoo's table."""
    folder = tmp_path / "tiny"
    monkeypatch.setattr("vlm_edge.zoo.MODELS", tmp_path)
    wanted = student_config(CONFIG, 32, 32).model_dump(mode="json")
    student = build_vision_student("mobilevit-xxs", wanted, 32)
    tower = load_checkpoint(tiny_blip).model.get_submodule("vision_model")
    save_student(folder, student, StudentRecord("mobilevit-xxs", wanted, 32, tower_digest(tower)))
    for module in (distill_config, distill_setup):
        monkeypatch.setattr(module, "STUDENT_WEIGHTS", {"tiny": ZooEntry("tiny", "for a test")})
    return folder


@pytest.mark.parametrize("start", ["auto", "zoo:tiny"])
def test_shipped_weights_are_the_start_where_they_fit(
    start: str, shipped: Path, task: TaskSpec, tiny_blip: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    config = DistillConfig(start=start, epochs=0.1, images_per_batch=12, learning_rate=1e-12, held_out_images=0)
    loaded, facts = run(config, tiny_blip, task, tmp_path / "run")
    assert facts["start"]["from"] == "zoo:tiny"
    name = "backbone.conv_stem.convolution.weight"
    student = loaded.model.get_submodule("vision_model").state_dict()
    torch.testing.assert_close(student[name], load_file(shipped / "model.safetensors")[name])


@pytest.mark.usefixtures("shipped")
def test_shipped_weights_of_another_teacher_are_left_out_or_refused(
    task: TaskSpec, tiny_blip: Path, tmp_path: Path
) -> None:
    other = load_checkpoint(tiny_blip)
    with torch.no_grad():
        next(other.model.get_submodule("vision_model").parameters()).add_(1e-3)
    save_checkpoint(tmp_path / "other", other.model, other)
    short = {"epochs": 0.1, "images_per_batch": 12, "held_out_images": 0}
    _, facts = run(DistillConfig(**short), tmp_path / "other", task, tmp_path / "auto")
    assert facts["start"]["from"] == "random"
    assert "no shipped weights" in facts["start"]["why"]
    with pytest.raises(VlmEdgeError, match=r"distill\.start: zoo:tiny does not fit: another teacher\n"):
        run(DistillConfig(start="zoo:tiny", **short), tmp_path / "other", task, tmp_path / "named")
    with pytest.raises(VlmEdgeError, match=r"does not fit: another config\n"):
        run(DistillConfig(start="zoo:tiny", activation="relu", **short), tiny_blip, task, tmp_path / "relu")


SHIPPED = {3: {"mobilevit-xxs-easyvqa": "9f5aaf66ef8be221b8a197d99e894dbcf17a48a8aa2792a5502959af2794b3ad"}}
"""distill's version -> sha256 of each of the weights that it may start from."""


def test_new_shipped_weights_raise_the_stages_version() -> None:
    """They are no part of a stage run's key: with the old version the store would go on giving the old result."""
    digests = {name: digest_file(entry.folder / "model.safetensors") for name, entry in STUDENT_WEIGHTS.items()}
    assert {distill.SPEC.version: digests} == SHIPPED, "raise SPEC.version, and write the new digests here"


def test_shipped_weights_belong_to_the_shipped_teacher_and_are_small() -> None:
    for entry in STUDENT_WEIGHTS.values():
        record = read_record(entry.folder)
        teacher = load_checkpoint(MODELS / "blip-easyvqa")
        tower = teacher.model.get_submodule(teacher.family.vision_tower_path)
        assert record.teacher == tower_digest(tower)
        student = build_vision_student(record.student, record.config, record.hidden)
        load_student(entry.folder, student)
        assert student_config(DistillConfig(student=record.student), 64, 64).model_dump(mode="json") == record.config
        assert folder_size_bytes(entry.folder) < 6e6


def test_a_dual_encoder_learns_a_student_too(tiny_clip: Path, tmp_path: Path) -> None:
    task = write_color_task(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "data/train/metadata.jsonl").read_text().splitlines()]
    classes = {row["file_name"]: row["answer"] for row in rows if row["question"] == "what color is it"}
    lines = [json.dumps({"file_name": name, "label": label}) for name, label in classes.items()]
    (tmp_path / "data/train/metadata.jsonl").write_text("\n".join(lines))
    manifest = task.data.read_text().replace("kind: vqa", "kind: classification")
    task.data.write_text(manifest + "labels: [red, green, blue]\nprompts: ['a {} picture']\n")
    loaded, facts = run(CONFIG, tiny_clip, TaskSpec(kind="classification", data=task.data), tmp_path / "run")
    losses = facts["training"]["losses"]
    assert losses[-1]["features"] < losses[0]["features"]
    assert set(losses[0]) == {"step", "features", "answers", "labels"}
    embeds = see(learner_of(loaded), pixels())
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))


def test_the_untrained_model_is_written_with_what_its_training_takes(
    task: TaskSpec, tiny_blip: Path, tmp_path: Path
) -> None:
    """On average its tokens are the teacher's, so that the text part answers as it does to the teacher."""
    work = work_in(tmp_path)
    config = CONFIG.model_copy(update={"images_per_batch": 12})
    cost = distill.write_untrained(config, StageInputs(checkpoint(tiny_blip), checkpoint(tiny_blip), task), work)
    assert cost.of == "student mobilevit-xxs"
    assert 0 < config.epochs * cost.epoch_s < cost.training_s  # besides, the teacher is asked once
    loaded, dense = load_checkpoint(work.out), learner_of(load_checkpoint(tiny_blip))
    assert [operation["op"] for operation in loaded.surgery] == ["replace_vision_tower"]
    old, new = dense.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("vision_model."))
    data = load_training_set(task, dense, work)
    teacher = Teacher(dense, (32, 32), (4, 4)).ask(data.batch(data.usable_images))[0]
    student = learner_of(loaded).encode(data.seen(data.usable_images)).detach()
    assert student.shape == teacher.shape
    torch.testing.assert_close(student.mean(dim=(0, 1)), teacher.mean(dim=(0, 1)), atol=1e-3, rtol=0)
    assert teacher.mean(dim=(0, 1)).abs().mean() > 0.3  # which a random student's tokens are not near


def test_the_time_of_an_epoch_grows_with_the_images_and_that_of_training_with_the_epochs(
    task: TaskSpec, tiny_blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill_forecast, "time_steps", lambda *_, **__: 2.0)  # seconds an image
    augmented = {"augment": Augmentation(horizontal_flip=True)}  # so that the teacher is asked in every step
    for samples, held_out, images in ((None, 0, 12), (None, 5, 11), (8, 0, 3)):
        changes = {"samples": samples, "held_out_images": held_out, "epochs": 5.0}
        config = CONFIG.model_copy(update=augmented | changes)
        inputs = StageInputs(checkpoint(tiny_blip), checkpoint(tiny_blip), task)
        cost = distill.write_untrained(config, inputs, work_in(tmp_path / f"{samples}-{held_out}"))
        assert (cost.epoch_s, cost.training_s) == (2.0 * images, 10.0 * images)


@pytest.mark.parametrize(("side", "stride"), [(16, 8), (63, 8), (64, 16), (127, 16), (128, 32), (384, 32)])
def test_a_student_keeps_four_cells_along_each_side(side: int, stride: int) -> None:
    assert student_config(CONFIG, side, 2 * side).output_stride == stride
    assert student_config(CONFIG.model_copy(update={"output_stride": 8}), side, side).output_stride == 8


def test_unknown_names_get_near_matches() -> None:
    with pytest.raises(ValidationError, match=r"unknown student; did you mean 'mobilevit-xxs'"):
        DistillConfig(student="mobilevit-xxxs")
    with pytest.raises(ValidationError, match=r"unknown start; did you mean 'random'"):
        DistillConfig(start="randon")
    with pytest.raises(ValidationError, match=r"augment\.shfit"):
        DistillConfig.model_validate({"augment": {"shfit": 0.1}})
