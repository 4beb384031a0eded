"""Bundles that were altered, that leave their folder, or whose numbers no device can follow: each is refused, named."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sealed import read_json, seal_again
from tiny_graphs import write_dual_encoder, write_vqa

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.manifest import MANIFEST_NAME, copy_side_files, read_manifest, write_manifest
from vlm_edge.runtime import load_pipeline

NOT_FINITE = [float("nan"), float("inf"), 0.0]


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    write_vqa(tmp_path / "vqa")
    return tmp_path / "vqa"


def refused(folder: Path) -> VlmEdgeError:
    with pytest.raises(VlmEdgeError) as caught:
        load_pipeline(folder, threads=1)
    assert caught.value.hint
    return caught.value


def edited(folder: Path, *path: str | int, value: Any) -> dict[str, Any]:
    """The manifest's JSON with one value replaced."""
    content = read_json(folder)
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


class TestUnannouncedEdits:
    def test_inverted_weights(self, vqa: Path) -> None:
        path = vqa / "decoder.onnx"
        model = onnx.load(path)
        head = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
        head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), "head"))
        onnx.save(model, path)
        assert refused(vqa).message == f"{path}: it was altered since {MANIFEST_NAME} was written"

    @pytest.mark.parametrize("name", ["vision_encoder.onnx", "text_encoder.onnx", "decoder.onnx", "tokenizer.json"])
    @pytest.mark.parametrize("place", [0, 0.5, -1])
    def test_one_bit_of_any_file(self, vqa: Path, name: str, place: float) -> None:
        raw = bytearray((vqa / name).read_bytes())
        raw[int(place * len(raw)) if place == 0.5 else int(place)] ^= 1
        (vqa / name).write_bytes(raw)
        assert str(vqa / name) in refused(vqa).message

    def test_tokens_that_change_places(self, vqa: Path) -> None:
        path = vqa / "tokenizer.json"
        text = path.read_text()
        path.write_text(text.replace('"red"', '"x"').replace('"green"', '"red"').replace('"x"', '"green"'))
        assert "altered" in refused(vqa).message

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("image", "mean"), [0.5, 0.5, 0.4]),
            (("image", "std"), [0.5, 0.5, 0.4]),
            (("generation", "eos_token_id"), 7),
            (("generation", "max_new_tokens"), 3),
            (("text", "pad_token_id"), 1),
            (("components", "vision_encoder", "file"), "decoder.onnx"),
            (("files", "decoder.onnx"), "0" * 64),
            (("labels",), ["yes", "no"]),
        ],
    )
    def test_a_value_of_the_manifest(self, vqa: Path, path: tuple[str, ...], value: Any) -> None:
        (vqa / MANIFEST_NAME).write_text(json.dumps(edited(vqa, *path, value=value)))
        assert refused(vqa).message == f"{vqa / MANIFEST_NAME}: it was altered since it was written"

    def test_a_file_that_is_gone(self, vqa: Path) -> None:
        (vqa / "notes.txt").write_text("ours")
        seal_again(vqa)
        (vqa / "notes.txt").unlink()
        assert "no file notes.txt" in refused(vqa).message

    @pytest.mark.parametrize("name", ["files", "digest"])
    def test_a_manifest_without_digests(self, vqa: Path, name: str) -> None:
        content = read_json(vqa)
        del content[name]
        (vqa / MANIFEST_NAME).write_text(json.dumps(content))
        refused(vqa)

    def test_a_manifest_of_an_older_version_names_the_command(self, vqa: Path) -> None:
        (vqa / MANIFEST_NAME).write_text(json.dumps(read_json(vqa) | {"format": 1}))
        error = refused(vqa)
        assert "format '1'; this version reads 2" in error.message
        assert "`vlm-edge run RECIPE`" in str(error.hint)

    def test_the_same_json_in_another_layout_is_the_same(self, vqa: Path) -> None:
        (vqa / MANIFEST_NAME).write_text(json.dumps(read_json(vqa), indent=7, sort_keys=True, ensure_ascii=False))
        load_pipeline(vqa, threads=1)

    def test_only_when_asked_for_an_altered_folder_is_opened(self, vqa: Path, caplog: pytest.LogCaptureFixture) -> None:
        (vqa / MANIFEST_NAME).write_text(json.dumps(edited(vqa, "image", "mean", value=[0.5, 0.5, 0.4])))
        with caplog.at_level(logging.WARNING, logger="vlm_edge"):  # another test's `-q` may have raised it
            load_pipeline(vqa, threads=1, verify=False)
        assert f"{vqa}: not verified" in caplog.text

    def test_a_sealed_folder_may_be_copied_and_another_file_lie_in_it(self, vqa: Path, tmp_path: Path) -> None:
        (vqa / "README.txt").write_text("the one in hall 3")
        vqa.rename(tmp_path / "moved")
        load_pipeline(tmp_path / "moved", threads=1)

    def test_side_files_are_those_that_are_listed(self, vqa: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("s")
        (vqa / "linked").symlink_to(tmp_path / "secret")
        (tmp_path / "out").mkdir()
        copy_side_files(vqa, tmp_path / "out", read_manifest(vqa))
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokenizer.json"]


class TestInside:
    @pytest.mark.parametrize(
        "name",
        [
            *("../decoder.onnx", "/etc/hostname", "sub/../../x", "./decoder.onnx", "a//b", "", ".", "..", "a\\b"),
            *("C:x", "a\0b", "a\nb", "x" * 300, "/".join("x" * 600), "\ud800", "decoder.onnx/"),
        ],
    )
    @pytest.mark.parametrize("place", [("components", "decoder", "file"), ("text", "tokenizer")])
    def test_only_plain_names(self, vqa: Path, name: str, place: tuple[str, ...]) -> None:
        (vqa.parent / "decoder.onnx").write_bytes((vqa / "decoder.onnx").read_bytes())
        seal_again(vqa, edited(vqa, *place, value=name))
        assert refused(vqa).message.startswith(f"{vqa / MANIFEST_NAME}: {'.'.join(place)}: ")

    def test_a_listed_name_outside(self, vqa: Path) -> None:
        content = read_json(vqa)
        content["files"]["../x"] = "0" * 64
        (vqa / MANIFEST_NAME).write_text(json.dumps(content))
        assert "files" in refused(vqa).message

    @pytest.mark.parametrize("verify", [True, False])
    @pytest.mark.parametrize("name", ["decoder.onnx", "tokenizer.json", MANIFEST_NAME])
    def test_a_link(self, vqa: Path, name: str, verify: bool) -> None:
        (vqa / name).rename(vqa.parent / "outside")
        (vqa / name).symlink_to(vqa.parent / "outside")
        with pytest.raises(VlmEdgeError, match=r"a link, which may lead out|no regular file"):
            load_pipeline(vqa, threads=1, verify=verify)

    def test_a_linked_folder_inside(self, vqa: Path) -> None:
        content = edited(vqa, "text", "tokenizer", value="sub/tokenizer.json")
        (vqa.parent / "elsewhere").mkdir()
        (vqa / "tokenizer.json").rename(vqa.parent / "elsewhere" / "tokenizer.json")
        (vqa / "sub").symlink_to(vqa.parent / "elsewhere")
        content["files"] = {}
        (vqa / MANIFEST_NAME).write_text(json.dumps(content))
        with pytest.raises(VlmEdgeError, match="a link"):
            load_pipeline(vqa, threads=1, verify=False)

    @pytest.mark.parametrize("name", ["decoder.onnx", "tokenizer.json"])
    def test_a_pipe_is_not_waited_for(self, vqa: Path, name: str) -> None:
        (vqa / name).unlink()
        os.mkfifo(vqa / name)
        assert "no regular file" in refused(vqa).message

    def test_a_used_file_that_is_not_listed(self, vqa: Path) -> None:
        content = read_json(vqa)
        del content["files"]["decoder.onnx"]
        (vqa / MANIFEST_NAME).write_text(json.dumps(content))
        assert "files: decoder.onnx is missing" in refused(vqa).message


HOSTILE: list[tuple[tuple[str | int, ...], Any]] = [
    *[(("image", name, 0), value) for name in ("mean", "std") for value in (float("nan"), float("inf"), "1e400")],
    *[(("image", "std", 0), value) for value in (0, -1, 1e-30)],
    *[(("image", "rescale_factor"), value) for value in NOT_FINITE],
    *[(("image", name), value) for name in ("height", "width", "shortest_edge") for value in (0, -1, 10**9)],
    (("image", "resize_to"), [16384, 16384]),
    (("image", "resample"), 9),
    (("image", "tiles"), {"kind": "canvas", "max_tiles": 10**6}),
    (("image", "tiles"), {"kind": "anyres", "resolutions": [[16384, 16384]], "grid": 1}),
    (("image", "tiles"), {"kind": "anyres", "resolutions": [], "grid": 1}),
    (("image", "tiles"), {"kind": "rows", "patch": 1024, "max_patches": 65536}),
    *[(("generation", "max_new_tokens"), value) for value in (0, -1, 10**9, "DIGITS")],
    *[(("generation", "eos_token_id"), value) for value in (-1, 2**40)],
    (("generation", "no_repeat_ngram"), 10**9),
    *[(("text", "pad_to"), value) for value in (0, 10**9)],
    (("text", "max_length"), 0),
    (("text", "tasks"), {"<A>": "{input}" * 1000}),
    *[(("components", "decoder", "threads"), value) for value in (0, 100_000)],
    (("components", "decoder", "outputs"), {}),
    (("components", "decoder", "inputs"), {}),
    (("components", "decoder", "inputs", "input_ids", "shape"), [2**62, 2**62]),
    (("components", "decoder", "inputs", "input_ids", "shape"), [-1, 2]),
    (("components",), {}),
    (("components", "decoder", "options"), {"graph_optimization": "x" * 300}),
    (("engine",), {"name": "onnxruntime", "version": "1", "threads": 100_000, "options": {}}),
    (("engine",), {"name": "onnxruntime", "version": "1", "threads": 1, "options": {"optimized_model_filepath": "/x"}}),
    (("engine",), {"name": "openvino", "version": "1", "threads": 1, "options": {"CACHE_DIR": "out"}}),
    (("family",), "x" * 10**6),
    (("labels",), ["x" * 10**6]),
    *[(("logit_scale",), value) for value in NOT_FINITE],
    (("logit_bias",), float("nan")),
    (("prompt",), {"layouts": ["{question}" * 1000], "image_token": "<i>", "image_token_id": 1, "image_tokens": 1}),
    (("prompt",), {"layouts": ["x"], "image_token": "", "image_token_id": 1, "image_tokens": 1}),
    (("prompt",), {"layouts": ["x"], "image_token": "<i>", "image_token_id": 1, "image_tokens": 10**9}),
]


class TestBounds:
    """Sealed as whoever makes a bundle can: nothing was altered, and nothing may kill or hang the process."""

    @pytest.mark.parametrize(("path", "value"), HOSTILE, ids=lambda each: str(each)[:50])
    def test_a_number_out_of_bounds_is_named(self, vqa: Path, path: tuple[str | int, ...], value: Any) -> None:
        if value == "DIGITS":
            seal_again(vqa)
            raw = (vqa / MANIFEST_NAME).read_text()
            (vqa / MANIFEST_NAME).write_text(raw.replace('"max_new_tokens": 6', f'"max_new_tokens": 1{"0" * 5000}'))
        else:
            seal_again(vqa, edited(vqa, *path, value=value))
        error = refused(vqa)
        assert len(error.message) < 1000
        if "options" not in str(value):
            assert str(vqa / MANIFEST_NAME) in error.message
        assert not (vqa / "out").exists()

    @pytest.mark.parametrize(
        "content", ["[" * 100_000, '{"a":' * 100_000, '{"format": 2, "x": ' + "[" * 500 + "]" * 500]
    )
    def test_deep_json(self, vqa: Path, content: str) -> None:
        (vqa / MANIFEST_NAME).write_text(content)
        assert str(vqa / MANIFEST_NAME) in refused(vqa).message

    def test_a_manifest_of_a_dual_encoder_needs_a_positive_scale(self, tmp_path: Path) -> None:
        write_dual_encoder(tmp_path)
        seal_again(tmp_path, logit_scale=-3)
        assert "logit_scale" in refused(tmp_path).message

    def test_a_row_that_is_another_graphs(self, vqa: Path) -> None:
        seal_again(vqa, edited(vqa, "components", "decoder", "inputs", "past_key_values.0.key", "shape", 1, value=99))
        assert "input 'past_key_values.0.key' is float32" in refused(vqa).message

    def test_what_is_written_can_be_read(self, vqa: Path) -> None:
        manifest = read_manifest(vqa)
        generation = manifest.generation
        assert generation is not None
        longer = manifest.model_copy(update={"generation": generation.model_copy(update={"max_new_tokens": 10**9})})
        before = (vqa / MANIFEST_NAME).read_bytes()
        with pytest.raises(VlmEdgeError, match=r"generation\.max_new_tokens"):
            write_manifest(vqa, longer)
        assert (vqa / MANIFEST_NAME).read_bytes() == before
        write_manifest(vqa, manifest)
        assert read_manifest(vqa) == manifest


class TestExternalData:
    """onnxruntime and OpenVINO both keep a graph's weights to the graph's folder; a library that stops to is seen."""

    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    @pytest.mark.parametrize("location", ["../out.bin", "sub/../../out.bin", "ABSOLUTE", "link.bin"])
    def test_weights_outside(self, vqa: Path, engine: str, location: str) -> None:
        pytest.importorskip(engine)
        path = vqa / "decoder.onnx"
        model = onnx.load(path)
        head = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
        outside = vqa.parent / "out.bin"
        outside.write_bytes(np.zeros(head.dims, np.float32).tobytes())
        (vqa / "sub").mkdir()
        if location == "ABSOLUTE":
            location = str(outside)
        head.ClearField("raw_data")
        head.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(outside.stat().st_size))):
            entry = head.external_data.add()
            entry.key, entry.value = key, value
        path.write_bytes(model.SerializeToString())
        seal_again(vqa)
        if location == "link.bin":
            (vqa / location).symlink_to(outside)
        with pytest.raises(VlmEdgeError):
            load_pipeline(vqa, engine=engine, threads=1).answer(np.zeros((8, 8, 3), np.uint8), "is it")  # type: ignore[union-attr]
