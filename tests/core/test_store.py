from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm_edge.core.artifact import ArtifactKind, digest_folder
from vlm_edge.core.store import Store, key_of, write_json_atomically
from vlm_edge.errors import VlmEdgeError


def seal(store: Store, key: str, text: str) -> str:
    with store.begin(key) as (out, _):
        (out / "sub").mkdir()
        (out / "sub" / "file.txt").write_text(text)
        return store.seal(key, ArtifactKind.GRAPHS, {"stage": key}, {"error": 0.5}, 1.0)[0].digest


def test_a_sealed_artifact_is_found_with_its_facts(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = seal(store, "k1", "hello")
    found = Store(tmp_path / "store").find("k1")
    assert found is not None
    artifact, record = found
    assert (artifact.digest, artifact.kind) == (digest, ArtifactKind.GRAPHS)
    assert (artifact.path / "sub" / "file.txt").read_text() == "hello"
    assert record.facts == {"error": 0.5}
    assert not (store.scratch / "k1").exists()
    assert store.find("k2") is None


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
    (store.keys / "k.json").unlink()  # killed between the object's rename and the record
    assert store.find("k") is None
    assert seal(store, "k", "x") == digest
    assert store.find("k") is not None


@pytest.mark.parametrize("damage", ["alter", "remove", "record"])
def test_damage_is_taken_for_absence(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    digest = seal(store, "k", "x")
    file = store.objects / digest / "sub" / "file.txt"
    if damage == "alter":
        file.chmod(0o644)
        file.write_text("y")
    elif damage == "remove":
        file.unlink()
    else:
        (store.keys / "k.json").write_text('{"key": ')
    assert store.find("k") is None
    assert seal(store, "k", "x") == digest
    assert store.find("k") is not None


def test_keys_are_canonical() -> None:
    assert key_of({"a": 1, "b": [1.5, "é"]}) == key_of({"b": [1.5, "é"], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of({"a": float("nan")})


def test_collect_removes_what_no_run_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept, gone = seal(store, "k1", "kept"), seal(store, "k2", "gone")
    store.keep_measurement("m1", {"artifacts": [kept], "value": 1})
    store.keep_measurement("m2", {"artifacts": [kept, gone], "value": 2})
    with store.begin("k3") as (out, _):
        (out / "half").write_text("half")
        assert store.collect({kept}, dry_run=True).scratch == ()  # under way: left alone
    dry = store.collect({kept}, dry_run=True)
    assert (dry.artifacts, dry.measurements, dry.scratch) == ((gone,), ("m2",), ("k3",))
    assert dry.size_bytes > 4
    assert store.find("k2") is not None
    assert store.collect({kept}, dry_run=False) == dry
    assert store.find("k2") is None
    assert store.find("k1") is not None
    assert store.measurement("m1") == {"artifacts": [kept], "value": 1}
    assert store.measurement("m2") is None


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
