from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.core import store as store_module
from vlm_edge.core.artifact import ArtifactKind, digest_folder
from vlm_edge.core.store import Store, key_of, write_json_atomically
from vlm_edge.errors import VlmEdgeError


def key(name: str) -> str:
    return key_of({"stage": name})


def seal(store: Store, name: str, text: str) -> str:
    with store.begin(key(name)) as (out, _):
        (out / "sub").mkdir()
        (out / "sub" / "file.txt").write_text(text)
        return store.seal(key(name), ArtifactKind.GRAPHS, {"stage": name}, {"error": 0.5}, 1.0)[0].digest


def test_a_sealed_artifact_is_found_with_its_facts(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = seal(store, "k1", "hello")
    found = Store(tmp_path / "store").find(key("k1"))
    assert found is not None
    artifact, record = found
    assert (artifact.digest, artifact.kind) == (digest, ArtifactKind.GRAPHS)
    assert (artifact.path / "sub" / "file.txt").read_text() == "hello"
    assert record.facts == {"error": 0.5}
    assert not (store.scratch / key("k1")).exists()
    assert store.find(key("k2")) is None


def test_the_digest_covers_names_and_content(tmp_path: Path) -> None:
    folders = []
    for index, (name, text) in enumerate([("a", "x"), ("b", "x"), ("a", "y")]):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / name).write_text(text)
        folders.append(folder)
    assert len({digest_folder(folder) for folder in folders}) == 3
    with pytest.raises(VlmEdgeError, match="holds no file"):
        digest_folder(tmp_path / "absent")


def test_a_name_with_a_newline_is_no_second_file(tmp_path: Path) -> None:
    sha = hashlib.sha256(b"x").hexdigest()
    for folder, names in (("two", ("a", "b")), ("one", (f"a\n{sha}  b",)), ("odd", ("a\\", "\udcff", "c\rd"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"x")
    assert digest_folder(tmp_path / "one") != digest_folder(tmp_path / "two")
    lines = subprocess.run(
        ["sha256sum", *sorted(path.name for path in (tmp_path / "odd").iterdir())],
        cwd=tmp_path / "odd",
        capture_output=True,
        check=True,
    ).stdout
    assert digest_folder(tmp_path / "odd") == hashlib.sha256(lines).hexdigest()


def test_an_unsealed_stage_run_is_not_found_and_keeps_its_state(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.begin("k") as (out, state):
        (out / "half").write_text("half")
        (state / "step").write_text("7")
    assert store.find("k") is None
    with store.begin("k") as (out, state):
        assert list(out.iterdir()) == []
        assert (state / "step").read_text() == "7"


def test_an_object_without_its_record_is_no_artifact_and_is_taken_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = seal(store, "k", "x")
    (store.keys / f"{key('k')}.json").unlink()  # killed between the object's rename and the record
    assert store.find(key("k")) is None
    assert seal(store, "k", "x") == digest
    assert store.find(key("k")) is not None


def altered(file: Path) -> None:
    file.chmod(0o644)
    file.write_text("y")


def linked(file: Path) -> None:
    """The same content, which whoever owns the other file can change afterwards."""
    other = file.parents[4] / "other.txt"
    other.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(other)


@pytest.mark.parametrize("damage", [altered, linked, Path.unlink], ids=["alter", "link", "remove"])
@pytest.mark.parametrize("fresh", [False, True], ids=["the same store", "another store"])
def test_a_damaged_object_is_taken_for_absent(tmp_path: Path, damage: Callable[[Path], None], fresh: bool) -> None:
    store = Store(tmp_path / "store")
    digest = seal(store, "k", "x")
    assert store.find(key("k")) is not None
    damage(store.objects / digest / "sub" / "file.txt")
    store = Store(tmp_path / "store") if fresh else store
    assert store.find(key("k")) is None
    assert seal(store, "k", "x") == digest
    found = store.find(key("k"))
    assert found is not None
    assert (found[0].path / "sub" / "file.txt").read_text() == "x"
    assert not (found[0].path / "sub" / "file.txt").is_symlink()


def test_an_object_is_hashed_once_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(Store(tmp_path), "k", "x")
    hashed: list[Path] = []

    def counted(folder: Path) -> str:
        hashed.append(folder)
        return digest_folder(folder)

    monkeypatch.setattr(store_module, "digest_folder", counted)
    store = Store(tmp_path)
    assert all(store.find(key("k")) for _ in range(3))
    assert len(hashed) == 1
    seal(store, "other", "y")
    assert store.find(key("other"))
    assert len(hashed) == 2


def rewrite(file: Path, **changes: Any) -> None:
    """Change a checked file by hand, with a checksum that fits."""
    content = {**json.loads(file.read_text())["content"], **changes}
    file.write_text(json.dumps({"sha256": key_of(content), "content": content}))


@pytest.mark.parametrize("digest", ["../../victim", "", ".", "..", "{victim}", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_a_record_s_digest_is_no_path(tmp_path: Path, digest: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years of work")
    store = Store(tmp_path / "store")
    kept = seal(store, "other", "kept")
    seal(store, "k", "x")
    rewrite(store.keys / f"{key('k')}.json", digest=digest.format(victim=victim))
    assert store.find(key("k")) is None
    store.collect({kept}, dry_run=False)
    seal(store, "k", "x")
    assert (victim / "thesis.txt").read_text() == "years of work"
    assert store.find(key("other")) is not None


@pytest.mark.parametrize("folder", ["objects", "keys", "measurements", "scratch", "cache", "locks"])
def test_a_store_whose_own_folder_is_a_link_is_refused(tmp_path: Path, folder: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years of work")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / folder).symlink_to(victim)
    with pytest.raises(VlmEdgeError, match=rf"{folder}: a link"):
        Store(tmp_path / "store").collect(set(), dry_run=False)
    assert [path.name for path in victim.iterdir()] == ["thesis.txt"]


def test_links_within_a_store_lead_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years of work")
    store = Store(tmp_path / "store")
    digest = seal(store, "k", "x")
    shutil.rmtree(store.objects / digest)
    for link in (
        store.objects / digest,
        store.objects / "loose",
        store.scratch / key("k"),
        store.scratch / "idle",
        store.cache / "quantize",
        store.measurements / f"{'0' * 64}.json",
    ):
        link.symlink_to(victim)
    (store.locks / key("k")).unlink()
    (store.locks / key("free")).symlink_to(victim / "thesis.txt")
    assert store.find(key("k")) is None
    assert seal(store, "k", "x") == digest
    assert store.shared("quantize").is_symlink() is False
    with pytest.raises(OSError, match="symbolic links"), store.begin(key("free")):
        pass
    store.collect(set(), dry_run=False)
    assert [(path.name, path.read_text()) for path in victim.iterdir()] == [("thesis.txt", "years of work")]


def test_state_that_holds_a_link_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "victim.txt").write_text("years of work")
    store = Store(tmp_path / "store")
    state = store.scratch / key("k") / "state"
    state.mkdir(parents=True)
    (state / "checkpoint.pt").symlink_to(tmp_path / "victim.txt")
    with store.begin(key("k")) as (_, state):
        assert list(state.iterdir()) == []
    assert (tmp_path / "victim.txt").read_text() == "years of work"


@pytest.mark.parametrize("kind", ["keys", "measurements"])
def test_a_flipped_bit_anywhere_makes_a_record_absent_or_changes_nothing(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    digest = seal(store, "k", "x")
    identity = {"measure": "latency", "artifacts": [digest]}
    store.keep_measurement(identity, {"p90": 12.5, "words": ["é"]})
    before = (store.find(key("k")), store.measurement(key_of(identity)))
    assert None not in before
    (file,) = (tmp_path / kind).glob("*.json")
    content = file.read_bytes()
    index = ("keys", "measurements").index(kind)
    for place in range(len(content)):
        bit = 1 << (place % 8)
        file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        assert (store.find(key("k")), store.measurement(key_of(identity)))[index] in (None, before[index])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "NaN", '{"sha256": 1}', '{"sha256": "", "content": 1e400}', "[" * 9999]
)
def test_a_file_that_is_no_record_is_absent(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    (store.keys / f"{key('k')}.json").write_text(text)
    (store.measurements / f"{key('k')}.json").write_text(text)
    assert store.find(key("k")) is None
    assert store.measurement(key("k")) is None
    assert store.records() == []
    assert store.collect(set(), dry_run=False).artifacts == ()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    os.mkfifo(store.keys / f"{key('k')}.json")
    digest = seal(store, "other", "x")
    (store.objects / digest / "sub").chmod(0o755)
    os.mkfifo(store.objects / digest / "sub" / "pipe")
    assert store.find(key("k")) is None
    assert store.find(key("other")) is None


def test_what_belongs_to_another_key_is_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = seal(store, "k", "x")
    identity = {"measure": "accuracy", "artifacts": [digest]}
    store.keep_measurement(identity, 0.9)
    other = {"measure": "accuracy", "artifacts": ["f" * 64]}
    for folder, own, wanted in (("keys", key("k"), key("k2")), ("measurements", key_of(identity), key_of(other))):
        shutil.copy(tmp_path / folder / f"{own}.json", tmp_path / folder / f"{wanted}.json")
    assert store.find(key("k2")) is None
    assert store.measurement(key_of(other)) is None
    assert store.measurement(key_of(identity)) == {"identity": identity, "value": 0.9}


def test_keys_are_canonical() -> None:
    assert key_of({"a": 1, "b": [1.5, "é"]}) == key_of({"b": [1.5, "é"], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of({"a": float("nan")})


def test_collect_removes_what_no_run_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept, gone = seal(store, "k1", "kept"), seal(store, "k2", "gone")
    identities = [{"artifacts": [kept]}, {"artifacts": [kept, gone]}]
    for value, identity in enumerate(identities):
        store.keep_measurement(identity, value)
    with store.begin("k3") as (out, _):
        (out / "half").write_text("half")
        assert store.collect({kept}, dry_run=True).scratch == ()  # under way: left alone
    dry = store.collect({kept}, dry_run=True)
    assert (dry.artifacts, dry.measurements, dry.scratch) == ((gone,), (key_of(identities[1]),), ("k3",))
    assert dry.size_bytes > 4
    assert store.find(key("k2")) is not None
    assert store.collect({kept}, dry_run=False) == dry
    assert store.find(key("k2")) is None
    assert store.find(key("k1")) is not None
    assert store.measurement(key_of(identities[0])) == {"identity": identities[0], "value": 0}
    assert store.measurement(key_of(identities[1])) is None


def test_collect_removes_the_temporary_files_of_killed_writes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = seal(store, "k", "x")
    store.keep_measurement({"artifacts": [kept]}, 1)
    script = (
        "import os, signal, sys; from pathlib import Path; from vlm_edge.files import write_atomically\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), b'x' * 1000)\n"
    )
    for folder in (store.keys, store.measurements):
        subprocess.run([sys.executable, "-c", script, str(folder / f"{'0' * 64}.json")], check=False)
    dry = store.collect({kept}, dry_run=True)
    assert (dry.temporary, dry.size_bytes) == (2, 2000)
    assert len([*store.keys.iterdir(), *store.measurements.iterdir()]) == 4
    assert store.collect({kept}, dry_run=False) == dry
    assert store.collect({kept}, dry_run=False).temporary == 0
    assert store.find(key("k")) is not None
    assert store.measurement(key_of({"artifacts": [kept]})) is not None


def test_a_failed_json_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json_atomically(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomically(path, {"a": float("inf")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VlmEdgeError, match="the store can't be written"):
        Store(tmp_path / "file")
