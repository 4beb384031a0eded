"""Attack the product with seeded hostile input: ``python attack.py FOLDER KIND FIRST COUNT``.

A base of each kind is made once, copied for every case, changed by mutations.py and given to the product in a process
of its own (sandbox.py). Prints a JSON line for each case: kind, seed, change, status, detail.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from mutations import mutate_bytes, mutate_folder, mutate_yaml
from PIL import Image
from sandbox import Outcome, run_in_sandbox

from vlm_edge.cli.main import main

PROJECT = Path(__file__).parents[2]
SECRET = b"nobody may read, change or remove this\n"


@dataclass(frozen=True)
class Attack:
    """One kind of input.

    Args:
        build: writes an honest base into a folder.
        change: makes one hostile change in a copy of it and says what it did.
        use: gives the copy to the product as a user would; what it returns is compared with the base's.
        imports: modules that take long to import, loaded once before the first case.
        exact: a changed input that is used without a complaint must give what the base gives.
    """

    build: Callable[[Path], None]
    change: Callable[[Path, random.Random], str]
    use: Callable[[Path], Any]
    imports: tuple[str, ...] = ()
    exact: bool = False


def command(folder: Path, *arguments: str) -> str:
    """Run a command line in ``folder`` and give its output; a refusal is a VlmEdgeError, a fault an AssertionError."""
    from vlm_edge.errors import VlmEdgeError

    options = ["-q", "--store", str(folder / "store"), "--runs", str(folder / "runs")]
    result = CliRunner().invoke(main, [*options, *arguments], input="y\n" * 100)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if "fault in vlm-edge" in result.stderr or "Traceback" in result.output:
        raise AssertionError(result.output[-1500:])
    if result.exit_code not in (0, 3, 4, 5):
        if "error:" not in result.stderr.lower():
            raise AssertionError(f"exit {result.exit_code} without an error: {result.output[-500:]}")
        raise VlmEdgeError(result.stderr[-1500:])
    forged = [line for line in result.output.splitlines() if line.startswith("::") and "add-mask" in line]
    if forged or "\x1b[31m" in result.stdout:
        raise AssertionError(f"output forged: {forged or 'an escape sequence'}")
    return str(result.stdout)


# -- what is attacked ------------------------------------------------------------------------------------------------

DATA = """name: toy
kind: vqa
licence: CC0-1.0
source:
  folder: images
splits:
  train:
    from: train
  calibration:
    from: train
    samples: 2
    seed: 1
  test:
    from: test
"""
RECIPE = """name: attacked
model: zoo:blip-easyvqa
task:
  kind: vqa
  data: data.yaml
target: cpu-ort
budgets:
  accuracy:
    max_drop_pt: 90.0
  latency:
    p90_speedup: 1.1
  size:
    max_ratio: 1.0
stages:
  - export: {}
  - quantize:
      components:
        "*": int8
      samples: 2
  - distill:
      student: mobilevit-xxs
      epochs: 1
      on_miss: drop
  - compile: {}
"""


def build_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "data.yaml").write_text(DATA)
    for seed, part in enumerate(("train", "test")):
        (folder / "images" / part).mkdir(parents=True)
        rows = []
        for number in range(4):
            name = f"{number}.png"
            pixels = np.random.default_rng(10 * seed + number).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / part / name)
            rows.append({"file_name": name, "question": "what color?", "answer": "red", "slice": "color"})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "images" / part / "metadata.jsonl").write_text(lines)


def change_recipe(folder: Path, draw: random.Random) -> str:
    path = folder / "recipe.yaml"
    path.write_bytes(mutate_yaml(path.read_bytes(), draw))
    return "mutate_yaml recipe.yaml"


def change_data(folder: Path, draw: random.Random) -> str:
    name = draw.choice(("data.yaml", "images"))
    if name == "images":
        return mutate_folder(folder / "images", draw)
    (folder / name).write_bytes(mutate_yaml((folder / name).read_bytes(), draw))
    return "mutate_yaml data.yaml"


def check(folder: Path) -> str:
    return command(folder, "check", str(folder / "recipe.yaml"))


def build_vqa_bundle(folder: Path) -> None:
    from tiny_graphs import random_images, save_image, write_vqa

    write_vqa(folder / "bundle")
    for number, pixels in enumerate(random_images(2)):
        save_image(folder / f"{number}.png", pixels)


def change_bundle(folder: Path, draw: random.Random) -> str:
    return mutate_folder(folder / "bundle", draw)


def answer(folder: Path) -> list[str]:
    bundle = str(folder / "bundle")
    return [command(folder, "answer", bundle, str(folder / f"{n}.png"), "what color is it", "--json") for n in range(2)]


def build_dual_bundle(folder: Path) -> None:
    from tiny_graphs import random_images, save_image, write_dual_encoder

    write_dual_encoder(folder / "bundle")
    save_image(folder / "0.png", random_images(1)[0])


def classify(folder: Path) -> str:
    labels = ("--label", "red", "--label", "green")
    return command(folder, "answer", str(folder / "bundle"), str(folder / "0.png"), *labels, "--json")


IMAGES = {"png": {}, "jpg": {"quality": 80}, "webp": {}, "bmp": {}, "gif": {}, "tif": {"compression": "tiff_lzw"}}


def build_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    image = Image.fromarray(pixels).resize((90, 60))
    for name, settings in IMAGES.items():
        image.save(folder / f"image.{name}", **settings)
    image.convert("P").save(folder / "palette.png", transparency=3)
    image.convert("L").save(folder / "grey.png")


def change_image(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.iterdir()))
    content = path.read_bytes()
    for _ in range(draw.choice((1, 1, 4))):
        content = mutate_bytes(content, draw)
    if draw.random() < 0.5:  # changes in the header are worth more than those in the pixels
        content = mutate_bytes(content[:64], draw) + content[64:]
    for other in folder.iterdir():
        other.unlink()
    (folder / "image").write_bytes(content)
    return f"mutate_bytes {path.name}"


def read_images(folder: Path) -> list[Any]:
    from vlm_edge.processing.images import read_image

    return [list(read_image(path).shape) for path in sorted(folder.iterdir())]


def build_blip(folder: Path) -> None:
    from vlm_edge.zoo.create import create

    create("blip-vqa", "tiny", folder / "checkpoint", seed=1)


def build_llava(folder: Path) -> None:
    from tiny_llava import checkpoint_of

    checkpoint_of(folder / "checkpoint")


def change_checkpoint(folder: Path, draw: random.Random) -> str:
    return mutate_folder(folder / "checkpoint", draw)


def load(folder: Path) -> Any:
    """All that an export reads of a checkpoint, and one forward's worth of weights."""
    from vlm_edge.families.loading import load_checkpoint

    source = folder / "checkpoint"
    loaded = load_checkpoint(source)
    family = loaded.family
    image = family.image_processing(source)
    parts = [image, family.text_processing(source), family.prompt(source), family.generation(source)]
    family.components(loaded.model, image)
    return [str(part) for part in parts]


IDENTITIES = [{"stage": letter, "artifacts": []} for letter in "abc"]


def build_store(folder: Path) -> None:
    from vlm_edge.core.artifact import ArtifactKind
    from vlm_edge.core.store import Store, key_of

    store = Store(folder / "store")
    kinds = (ArtifactKind.GRAPHS, ArtifactKind.ENGINE, ArtifactKind.CHECKPOINT)
    for identity, kind in zip(IDENTITIES, kinds, strict=True):
        key = key_of(identity)
        with store.begin(key) as (out, _):
            (out / "model.bin").write_bytes(str(identity["stage"]).encode() * 100)
            store.seal(key, kind, identity, {"fact": 1}, 1.5)
        store.keep_measurement(identity, 1.5)


def change_store(folder: Path, draw: random.Random) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    return mutate_folder(folder / "store", draw)


def use_store(folder: Path) -> Any:
    """A lost artifact or measurement is made again; a wrong one must never be used."""
    from vlm_edge.core.store import Store, key_of

    store, right = Store(folder / "store"), True
    for identity in IDENTITIES:
        found, kept = store.find(key_of(identity)), store.measurement(key_of(identity))
        wanted = str(identity["stage"]).encode() * 100
        right &= found is None or (found[0].path / "model.bin").read_bytes() == wanted
        right &= kept is None or kept["value"] == 1.5
    command(folder, "ls")
    command(folder, "gc")
    return right


def build_record(folder: Path) -> None:
    from run_folders import write_run

    write_run(folder / "runs" / "toy")


def build_full_record(folder: Path) -> None:
    (folder / "runs" / "toy").mkdir(parents=True)
    whole = json.loads((PROJECT / "tests" / "report" / "quickstart.json").read_bytes())["record"]
    (folder / "runs" / "toy" / "run.json").write_text(json.dumps(whole))


def change_record(folder: Path, draw: random.Random) -> str:
    return mutate_folder(folder / "runs" / "toy", draw)


def show_record(folder: Path) -> str:
    run = str(folder / "runs" / "toy")
    command(folder, "report", run, "--html", "-o", str(folder / "report.html"))
    return command(folder, "report", run)


def use_record(folder: Path) -> str:
    show_record(folder)
    return command(folder, "gate", str(folder / "runs" / "toy"))


TORCH = ("torch", "transformers", "vlm_edge.families.loading", "vlm_edge.families.table", "vlm_edge.zoo.create")
ATTACKS: dict[str, Attack] = {
    "recipe": Attack(build_recipe, change_recipe, check, TORCH),
    "data": Attack(build_recipe, change_data, check, TORCH),
    "vqa bundle": Attack(build_vqa_bundle, change_bundle, answer, exact=True),
    "dual bundle": Attack(build_dual_bundle, change_bundle, classify, exact=True),
    "image": Attack(build_images, change_image, read_images),
    "blip checkpoint": Attack(build_blip, change_checkpoint, load, TORCH),
    "llava checkpoint": Attack(build_llava, change_checkpoint, load, TORCH),
    "store": Attack(build_store, change_store, use_store, exact=True),
    "record": Attack(build_record, change_record, use_record),
    "long record": Attack(build_full_record, change_record, show_record),
}


# -- the attack ------------------------------------------------------------------------------------------------------


def attack(root: Path, kind: str, seeds: range) -> Iterator[dict[str, Any]]:
    """Run the cases ``seeds`` of one kind. ``root``: an empty folder to work in."""
    spec = ATTACKS[kind]
    base, work = root / "base", root / "work"
    victim = root / "victim"
    for folder in (base, victim, root / "cache"):
        folder.mkdir()
    (victim / "secret.txt").write_bytes(SECRET)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    os.environ["XDG_STATE_HOME"] = str(root / "cache")
    tempfile.tempdir = str(root / "cache")
    for module in spec.imports:
        importlib.import_module(module)
    built = run_in_sandbox(lambda: spec.build(base), base, project=PROJECT)
    assert not built.fault, f"the base of {kind}: {built.detail}"
    _copy(base, work)
    honest = run_in_sandbox(lambda: spec.use(work), work, project=PROJECT)
    assert honest.status == "ok", f"{kind} without any change: {honest.status}: {honest.detail}"
    for seed in seeds:
        draw = random.Random(f"{kind} {seed}")
        _copy(base, work)
        change = spec.change(work, draw)
        outcome = run_in_sandbox(lambda: spec.use(work), work, project=PROJECT)
        if _content(victim) != {"secret.txt": SECRET}:
            outcome = Outcome("outside", "the victim was changed")
            (victim / "secret.txt").write_bytes(SECRET)
        elif spec.exact and outcome.status == "ok" and outcome.value != honest.value:
            outcome = Outcome("unannounced", f"{str(outcome.value)[:300]} instead of {str(honest.value)[:300]}")
        yield {"kind": kind, "seed": seed, "change": change, "status": outcome.status, "detail": outcome.detail}


def _copy(base: Path, work: Path) -> None:
    if work.exists():
        for folder in (work, *(path for path in work.rglob("*") if path.is_dir() and not path.is_symlink())):
            folder.chmod(0o755)
        shutil.rmtree(work)
    shutil.copytree(base, work)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


if __name__ == "__main__":
    for row in attack(Path(sys.argv[1]), sys.argv[2], range(int(sys.argv[3]), int(sys.argv[3]) + int(sys.argv[4]))):
        print(json.dumps(row), flush=True)
