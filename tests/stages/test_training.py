"""The training loop and its data: the same end after a kill, and batches that are what they say."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from color_task import write_color_task
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vlm_edge.core.stage import StageWork, TaskSpec, Ticker
from vlm_edge.errors import VlmEdgeError
from vlm_edge.families.loading import load_checkpoint
from vlm_edge.processing.images import preprocess, read_image
from vlm_edge.stages import training_data
from vlm_edge.stages.training import Course, Minibatch, WeightAverage, cache_features, learning_rate_factor, train
from vlm_edge.stages.training_config import TrainingConfig
from vlm_edge.stages.training_data import CHUNK_ROWS, RowCache, TrainingSet, load_training_set
from vlm_edge.training.table import learner_of

CONFIG = TrainingConfig(epochs=4, images_per_batch=4, questions_per_image=1, learning_rate=0.01, ema_decay=0.9)


def work_in(folder: Path, **arguments: Any) -> StageWork:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return StageWork(out=folder / "out", scratch=folder / "scratch", **arguments)


def load_set(task: TaskSpec, checkpoint: Path, work: StageWork, **arguments: Any) -> TrainingSet:
    return load_training_set(task, learner_of(load_checkpoint(checkpoint)), work, **arguments)


class ColorNet(nn.Module):
    """Something of everything that has state: convolution, batch norm, dropout, and a frozen batch norm."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.frozen = nn.BatchNorm2d(3).requires_grad_(False)
            self.tower = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
            self.head = nn.Linear(8, 128)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.tower(self.frozen(pixels)).mean(dim=(2, 3)))
        return logits


def color_terms(net: ColorNet, mini: Minibatch) -> dict[str, Tensor]:
    """Two loss terms; the first reads pixels and a random draw, as augmentation would."""
    pixels = mini.batch.pixels["pixel_values"]
    if mini.rng.random() < 0.5:
        pixels = pixels.flip(-1)
    logits = net(pixels)[mini.batch.image_index]
    return {
        "answer": nn.functional.cross_entropy(logits.float(), mini.batch.labels[:, 0]),
        "size": 1e-3 * logits.float().square().mean(),
    }


def run_color_training(task: TaskSpec, checkpoint: Path, work: StageWork, stop_at: int | None = None) -> Any:
    """(state of the net, report); with ``stop_at``, the process ends itself by SIGKILL in that step's loss."""
    net, steps = ColorNet(), iter(range(10_000))

    def loss(mini: Minibatch) -> dict[str, Tensor]:
        if next(steps) == stop_at:
            signal.raise_signal(signal.SIGKILL)
        return color_terms(net, mini)

    data = load_set(task, checkpoint, work)
    report = train(net, data, loss, CONFIG, work, Course("color net"), checkpoint_seconds=0)
    return net.state_dict(), report


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskSpec:
    return write_color_task(tmp_path_factory.mktemp("colors"))


@pytest.fixture
def data(task: TaskSpec, tiny_blip: Path, tmp_path: Path) -> TrainingSet:
    return load_set(task, tiny_blip, work_in(tmp_path))


def test_a_killed_training_goes_on_and_ends_with_the_same_bits(task: TaskSpec, tiny_blip: Path, tmp_path: Path) -> None:
    whole, report = run_color_training(task, tiny_blip, work_in(tmp_path / "whole", seed=3))
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[4:]\n"
        "from test_training import run_color_training, work_in; from vlm_edge.core.stage import TaskSpec\n"
        "task = TaskSpec(kind='vqa', data=Path(sys.argv[1]))\n"
        "run_color_training(task, Path(sys.argv[2]), work_in(Path(sys.argv[3]), seed=3), stop_at=7)\n"
    )
    here = Path(__file__).parent
    arguments = [task.data, tiny_blip, tmp_path / "killed", here, here.parent / "support"]
    killed = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "killed/scratch/color_net.pt").is_file()
    resumed, resumed_report = run_color_training(task, tiny_blip, work_in(tmp_path / "killed", seed=3))
    assert resumed_report == report
    assert report["steps"] == 12
    assert [entry["step"] for entry in report["losses"]] == list(range(1, 13))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_finished_training_is_not_done_again(task: TaskSpec, tiny_blip: Path, tmp_path: Path) -> None:
    work = work_in(tmp_path)
    first, report = run_color_training(task, tiny_blip, work)
    again, again_report = run_color_training(task, tiny_blip, work, stop_at=0)
    assert again_report == report
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_training_learns_and_leaves_frozen_parts_and_the_random_state_alone(
    task: TaskSpec, tiny_blip: Path, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    state, report = run_color_training(task, tiny_blip, work_in(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    assert report["losses"][-1]["answer"] < 0.9 * report["losses"][0]["answer"]
    untouched = ColorNet().state_dict()
    for name in untouched:
        assert torch.equal(state[name], untouched[name]) == name.startswith("frozen"), name


def test_another_seed_is_another_training_and_a_state_of_other_settings_is_not_continued(
    data: TrainingSet, tmp_path: Path
) -> None:
    work = work_in(tmp_path)
    nets = []
    for seed, rate in ((0, 0.01), (1, 0.01), (0, 0.02), (0, 0.01)):
        net = ColorNet()
        config = TrainingConfig(epochs=1, images_per_batch=4, learning_rate=rate)
        seeded = StageWork(out=work.out, scratch=work.scratch, seed=seed)
        train(net, data, lambda mini, net=net: color_terms(net, mini), config, seeded)  # type: ignore[misc]
        nets.append(net.head.weight)
    assert torch.equal(nets[0], nets[3])
    assert not torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


def test_one_step_is_adamw_by_hand(data: TrainingSet, tmp_path: Path) -> None:
    """AdamW's first step (Loshchilov & Hutter 2019, algorithm 2): decay, then the gradient over its own size."""
    weight = nn.Linear(1, 1)
    start = [float(weight.weight.detach()), float(weight.bias.detach())]
    config = TrainingConfig(epochs=1, images_per_batch=100, learning_rate=0.1, weight_decay=0.5, warmup=0)
    report = train(weight, data, lambda _: {"loss": 0.5 * weight.weight.sum() + 0.3 * weight.bias.sum()}, config,
                   work_in(tmp_path), Course(pixels=False))  # fmt: skip
    assert report["steps"] == 1
    assert float(weight.weight.detach()) == pytest.approx(start[0] * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)
    assert float(weight.bias.detach()) == pytest.approx(start[1] - 0.1, abs=1e-6)


def test_the_report_and_the_bar_count_steps(data: TrainingSet, tmp_path: Path) -> None:
    @dataclass
    class Counter:
        bars: dict[str, tuple[float | None, list[float]]] = field(default_factory=dict)

        @contextmanager
        def bar(self, label: str, total: float | None) -> Iterator[Ticker]:
            steps = self.bars.setdefault(label, (total, []))[1]

            class Tick:
                def advance(self, count: float = 1.0, *, note: str | None = None) -> None:
                    steps.append(count)

            yield Tick()

    counter, weight = Counter(), nn.Linear(1, 1)
    config = TrainingConfig(epochs=2.5, images_per_batch=3)
    report = train(weight, data, lambda _: {"loss": weight.weight.sum()}, config,
                   work_in(tmp_path, progress=counter), Course("recovery", pixels=False))  # fmt: skip
    total, steps = counter.bars["recovery"]
    assert total == sum(steps) == report["steps"] == 10
    assert (report["images"], report["questions"], report["epochs"]) == (12, 30, 2.5)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_what_to_change(data: TrainingSet, tmp_path: Path) -> None:
    weight = nn.Linear(1, 1)
    with pytest.raises(VlmEdgeError, match="the loss is nan at step 1 of 3") as caught:
        train(weight, data, lambda _: {"loss": weight.weight.sum() * math.nan}, TrainingConfig(images_per_batch=4),
              work_in(tmp_path), Course(pixels=False))  # fmt: skip
    assert "learning_rate" in str(caught.value.hint)


def test_nothing_to_train_is_an_error(data: TrainingSet, tmp_path: Path) -> None:
    frozen = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(VlmEdgeError, match="every parameter is frozen"):
        train(frozen, data, lambda _: {}, TrainingConfig(), work_in(tmp_path))


@given(st.integers(1, 2000), st.floats(0, 0.9))
def test_the_learning_rate_rises_then_falls_and_stays_between_zero_and_one(steps: int, warmup: float) -> None:
    factors = [learning_rate_factor(step, steps, warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = int(np.argmax(factors))
    assert peak == min(round(warmup * steps), steps - 1)
    assert factors[peak] == 1
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert learning_rate_factor(steps, steps, warmup) == pytest.approx(0, abs=1e-12)


def test_the_weight_average_is_the_recursion_in_numpy() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    average, expected = WeightAverage([parameter], 0.5), np.array([1.0, -2.0])
    for number in range(20):
        with torch.no_grad():
            parameter += 1.0
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * parameter.detach().numpy()
    average.apply()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6)


def test_batches_hold_the_images_questions_and_no_needless_padding(data: TrainingSet) -> None:
    batch = data.batch([3, 0])
    assert batch.image_index.tolist() == [0, 0, 0, 1, 1]
    texts = [data.samples[row].text for image in (3, 0) for row in data.rows[image]]
    assert texts == [
        "what color is it",
        "is it red",
        "is there a blue shape in the image",
        "what color is it",
        "is it red",
    ]
    images = [read_image(data.images[row]) for row in (3, 0)]
    np.testing.assert_array_equal(batch.pixels["pixel_values"].numpy(), preprocess(images, data.learner.image))
    ids, mask = data.learner.tokenizer.encode(texts)
    assert np.array_equal(batch.text["input_ids"], ids)
    assert np.array_equal(batch.text["attention_mask"], mask)
    fewer = data.batch([0, 2], pixels=False)
    assert fewer.text["input_ids"].shape[1] < ids.shape[1]
    assert not fewer.pixels


def test_some_questions_are_a_seeded_choice_of_the_images_own(data: TrainingSet) -> None:
    seen = set()
    for seed in range(20):
        first, second = (data.choose([1, 2], questions_per_image=2, rng=np.random.default_rng(seed)) for _ in range(2))
        assert [rows.tolist() for rows in first] == [rows.tolist() for rows in second]
        assert data.batch([1, 2], chosen=first, pixels=False).image_index.tolist() == [0, 0, 1, 1]
        assert all(
            set(chosen) < set(data.rows[image]) for chosen, image in zip(first, (1, 2), strict=True) if image == 1
        )
        seen.add(tuple(first[0].tolist()))
    assert len(seen) == 3


def test_rows_are_computed_once_by_chunks_and_read_back(tmp_path: Path) -> None:
    calls: list[range] = []

    def compute(rows: range) -> np.ndarray[Any, Any]:
        calls.append(rows)
        return np.array([[row, -row] for row in rows], dtype=np.float16)

    count = CHUNK_ROWS + 5
    RowCache(tmp_path, count, compute).fill("rows", work_in(tmp_path))
    again = RowCache(tmp_path, count, compute)
    assert again[[count - 1, 0, 7]].tolist() == [[count - 1, 1 - count], [0, 0], [7, -7]]
    assert calls == [range(0, CHUNK_ROWS), range(CHUNK_ROWS, count)]
    assert [path.suffix for path in sorted(tmp_path.glob("*.npy"))] == [".npy", ".npy"]


def test_items_of_several_rows_come_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "CHUNK_ROWS", 2)
    sizes = [1, 3, 2, 2, 1]
    rows = [np.full((size, 2), item) for item, size in enumerate(sizes)]
    cache = RowCache(tmp_path, 5, lambda items: np.concatenate([rows[item] for item in items]), sizes)
    assert cache[[4, 1, 2]][:, 0].tolist() == [4, 1, 1, 1, 2, 2]


def test_no_more_files_stay_open_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "CHUNK_ROWS", 2)
    monkeypatch.setattr(training_data, "MAX_OPEN_CHUNKS", 3)
    cache = RowCache(tmp_path, 20, lambda rows: np.array(rows))
    for _ in range(2):
        assert cache[list(range(19, -1, -1))].tolist() == list(range(19, -1, -1))
        assert len(cache._chunks) == 3


def test_a_disk_too_small_for_all_rows_is_told_after_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data.shutil, "disk_usage", lambda _: SimpleNamespace(free=CHUNK_ROWS * 8 * 3))
    RowCache(tmp_path / "fits", CHUNK_ROWS * 4, lambda rows: np.array(rows)).fill("rows", work_in(tmp_path))
    cache = RowCache(tmp_path / "large", CHUNK_ROWS * 4 + 1, lambda rows: np.array(rows))
    with pytest.raises(VlmEdgeError, match=r"rows of 513 images need .* GiB more"):
        cache.fill("rows", work_in(tmp_path))
    assert len(list((tmp_path / "large").glob("*.npy"))) == 1


def test_cached_features_are_the_models_own(data: TrainingSet, tmp_path: Path) -> None:
    rows = cache_features(data.learner, data, "f", work_in(tmp_path))
    with torch.no_grad():
        expected = data.learner.encode(data.seen([4, 1]))
    found = rows[[4, 1]]
    assert found.dtype == np.float16
    error = np.abs(found - expected.numpy()).max() / expected.abs().max()
    assert float(error) < 0.03  # bfloat16's 8 bits through two layers


@pytest.mark.parametrize(("images", "fails"), [(120, False), (12, True)])
def test_a_bad_image_is_a_named_skip_and_more_than_one_percent_an_error(
    images: int, fails: bool, tiny_blip: Path, tmp_path: Path
) -> None:
    broken_task = write_color_task(tmp_path, images)
    broken = tmp_path / "data/train/4.png"
    broken.write_bytes(b"not an image")
    work = work_in(tmp_path)
    if fails:
        with pytest.raises(VlmEdgeError, match=r"1 of 12 train images can't be read.*4\.png"):
            load_set(broken_task, tiny_blip, work)
        return
    for _ in range(2):  # the second time from the cache
        work.facts.clear()
        data = load_set(broken_task, tiny_blip, work)
        assert list(work.facts["skipped_images"]) == [str(broken)]
        assert 4 not in data.usable_images
        assert len(data.usable_images) == 119
        assert all(sample.image != broken for sample in data.samples)
