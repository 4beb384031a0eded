"""Both pipelines on hand-written graphs, against plain numpy; and what the runtime may not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sealed import read_json, seal_again
from tiny_graphs import WORDS, random_images, save_image, vqa_answer, write_dual_encoder, write_vqa

from vlm_edge.errors import VlmEdgeError
from vlm_edge.processing.images import preprocess
from vlm_edge.runtime import DualEncoderPipeline, VqaPipeline, load_pipeline

QUESTIONS = ["what color is it", "is it red", "is it", "what is blue no yes", "green"]
SEEDS = [0, 1, 2, 3]


def words(ids: list[int]) -> str:
    return " ".join(WORDS[index] for index in ids if index > 2)


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    write_vqa(tmp_path / "vqa")
    return tmp_path / "vqa"


class TestVqa:
    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.parametrize("pad_to", [None, 9])
    def test_answers_equal_greedy_decoding_without_a_cache(self, tmp_path: Path, seed: int, pad_to: int | None) -> None:
        weights = write_vqa(tmp_path, seed=seed, pad_to=pad_to)
        pipeline = load_pipeline(tmp_path, threads=1)
        assert isinstance(pipeline, VqaPipeline)
        images = random_images(len(QUESTIONS), seed)
        expected = [words(vqa_answer(weights, *pair)) for pair in zip(images, QUESTIONS, strict=True)]
        assert [pipeline.answer(*pair) for pair in zip(images, QUESTIONS, strict=True)] == expected
        features = pipeline.encode_images(images, batch_size=2)
        for batch_size in (1, 3, 64):
            assert pipeline.answer_batch(features, QUESTIONS, batch_size=batch_size) == expected

    def test_the_examples_end_at_different_lengths(self, tmp_path: Path) -> None:
        """Guards the test above: it would prove little if every answer had one length."""
        lengths = set()
        for seed in SEEDS:
            weights = write_vqa(tmp_path, seed=seed)
            images = random_images(len(QUESTIONS), seed)
            lengths |= {len(vqa_answer(weights, *pair)) for pair in zip(images, QUESTIONS, strict=True)}
        assert len(lengths) >= 3
        assert min(lengths) == 0 or 1 in lengths

    def test_max_new_tokens(self, tmp_path: Path) -> None:
        weights = write_vqa(tmp_path, seed=1)
        pipeline = load_pipeline(tmp_path, threads=1)
        assert isinstance(pipeline, VqaPipeline)
        images = random_images(len(QUESTIONS), 1)
        ids = [vqa_answer(weights, *pair)[:2] for pair in zip(images, QUESTIONS, strict=True)]
        answers = pipeline.answer_batch(pipeline.encode_images(images), QUESTIONS, max_new_tokens=2)
        assert answers == [words(row) for row in ids]

    def test_image_sources_and_sizes(self, vqa: Path, tmp_path: Path) -> None:
        pipeline = load_pipeline(vqa, threads=1)
        assert isinstance(pipeline, VqaPipeline)
        large = np.repeat(np.repeat(random_images(1)[0], 3, axis=0), 2, axis=1)
        path = save_image(tmp_path / "large.png", large)
        sources = [large, Image.fromarray(large), path, str(path), path.read_bytes()]
        assert len({pipeline.answer(source, "is it red") for source in sources}) == 1
        features = pipeline.encode_images(sources)
        np.testing.assert_array_equal(features, np.repeat(features[:1], len(sources), axis=0))

    def test_nothing_to_do(self, vqa: Path) -> None:
        pipeline = load_pipeline(vqa, threads=1)
        assert isinstance(pipeline, VqaPipeline)
        features = pipeline.encode_images([])
        assert features.shape == (0, 4, 3)
        assert pipeline.answer_batch(features, []) == []

    def test_batches_and_answers_of_no_length_are_refused(self, vqa: Path) -> None:
        pipeline = load_pipeline(vqa, threads=1)
        assert isinstance(pipeline, VqaPipeline)
        (image,) = random_images(1)
        for size in (0, -3):
            with pytest.raises(VlmEdgeError, match=f"batch_size: {size}"):
                pipeline.encode_images([image], batch_size=size)
            with pytest.raises(VlmEdgeError, match=f"batch_size: {size}"):
                pipeline.answer_batch(pipeline.encode_images([image]), ["is it"], batch_size=size)
        for limit in (0, -1, 10**9):
            with pytest.raises(VlmEdgeError, match=f"max_new_tokens: {limit}"):
                pipeline.answer(image, "is it", max_new_tokens=limit)

    def test_the_decoder_is_given_no_more_tokens_than_it_has_positions_for(self, vqa: Path) -> None:
        images = random_images(len(QUESTIONS))
        pipeline: Any = load_pipeline(vqa, threads=1)
        whole = pipeline.answer_ids(pipeline.encode_images(images), QUESTIONS)
        assert max(map(len, whole)) > 2
        seal_again(vqa, generation=read_json(vqa)["generation"] | {"positions": 2})
        pipeline = load_pipeline(vqa, threads=1)
        features = pipeline.encode_images(images)
        assert pipeline.answer_ids(features, QUESTIONS) == [row[:2] for row in whole]
        assert pipeline.answer_ids(features, QUESTIONS, max_new_tokens=2) == [row[:2] for row in whole]
        with pytest.raises(VlmEdgeError, match="a prompt of 1 tokens and 3 new ones: the decoder has 2 positions"):
            pipeline.answer(images[0], "is it red", max_new_tokens=3)

    def test_a_question_is_never_cut(self, vqa: Path) -> None:
        pipeline = load_pipeline(vqa, threads=1)
        assert isinstance(pipeline, VqaPipeline)
        with pytest.raises(VlmEdgeError, match="12 tokens; this model reads at most 10"):
            pipeline.answer(random_images(1)[0], "is it red " * 3 + "no")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"first_token_id": 99}, "token 99 is none of the decoder's 12"),
            ({"suppress_tokens": [10**6]}, "token 1000000 is none"),
            ({"bad_words_ids": [[1, 500]]}, "token 500 is none"),
            ({"eos_token_id": 12}, "token 12 is none"),
        ],
    )
    def test_tokens_beyond_the_vocabulary(self, vqa: Path, changes: dict[str, object], words: str) -> None:
        seal_again(vqa, generation=read_json(vqa)["generation"] | changes)
        with pytest.raises(VlmEdgeError, match=words):
            load_pipeline(vqa, threads=1)

    def test_one_row_of_features_for_each_question(self, vqa: Path) -> None:
        pipeline = load_pipeline(vqa, threads=1)
        assert isinstance(pipeline, VqaPipeline)
        with pytest.raises(VlmEdgeError, match="2 rows of features for 1 texts"):
            pipeline.answer_batch(pipeline.encode_images(random_images(2)), ["is it red"])


class TestDualEncoder:
    PROMPTS = ("what is {}", "is it {}", "{}")
    LABELS = ("red", "green", "blue")

    def texts(self, weights: dict[str, np.ndarray], texts: list[str]) -> np.ndarray:
        rows = [[1, *(WORDS.index(word) for word in text.split()), 2] for text in texts]
        sums = np.stack([weights["word_embeddings"][row].sum(axis=0) for row in rows])
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def test_embeddings_and_classes_equal_numpy(self, tmp_path: Path) -> None:
        weights = write_dual_encoder(tmp_path, logit_scale=7.5)
        pipeline = load_pipeline(tmp_path, threads=1)
        assert isinstance(pipeline, DualEncoderPipeline)
        images = random_images(5)
        means = preprocess(images, pipeline.manifest.image).mean(axis=(2, 3))
        image_embeds = means / np.linalg.norm(means, axis=1, keepdims=True)
        np.testing.assert_allclose(pipeline.embed_images(images, batch_size=2), image_embeds, atol=1e-5)
        texts = ["what is red", "green", "is it blue no"]
        np.testing.assert_allclose(
            pipeline.embed_texts(texts, batch_size=2), self.texts(weights, texts), atol=1e-6
        )  # a batch pads the shorter texts
        ensembles = []
        for label in self.LABELS:
            mean = self.texts(weights, [prompt.format(label) for prompt in self.PROMPTS]).mean(axis=0)
            ensembles.append(mean / np.linalg.norm(mean))
        np.testing.assert_allclose(pipeline.label_embeddings(self.LABELS, self.PROMPTS), ensembles, atol=1e-6)
        weights_of = np.exp(7.5 * image_embeds @ np.array(ensembles).T)
        expected = weights_of / weights_of.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(pipeline.classify(images, self.LABELS, self.PROMPTS), expected, atol=1e-5)

    def test_nothing_to_do(self, tmp_path: Path) -> None:
        write_dual_encoder(tmp_path)
        pipeline = load_pipeline(tmp_path, threads=1)
        assert isinstance(pipeline, DualEncoderPipeline)
        assert pipeline.embed_images([]).shape == pipeline.embed_texts([]).shape == (0, 3)
        assert pipeline.classify([], ["red"]).shape == (0, 1)

    def test_labels_and_prompts_that_make_no_sense(self, tmp_path: Path) -> None:
        write_dual_encoder(tmp_path)
        pipeline = load_pipeline(tmp_path, threads=1)
        assert isinstance(pipeline, DualEncoderPipeline)
        with pytest.raises(VlmEdgeError, match="0 labels"):
            pipeline.classify(random_images(1), [])
        with pytest.raises(VlmEdgeError, match=r"has no \{\}"):
            pipeline.classify(random_images(1), ["red"], ["a photo"])


class TestLoadPipeline:
    def test_no_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(VlmEdgeError, match=r"no manifest\.json"):
            load_pipeline(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff\xfe"])
    def test_unreadable_manifest(self, vqa: Path, content: bytes) -> None:
        (vqa / "manifest.json").write_bytes(content)
        with pytest.raises(VlmEdgeError) as caught:
            load_pipeline(vqa)
        assert str(vqa / "manifest.json") in caught.value.message

    def test_missing_component_file(self, vqa: Path) -> None:
        (vqa / "decoder.onnx").unlink()
        with pytest.raises(VlmEdgeError, match=r"manifest\.json: no file decoder\.onnx"):
            load_pipeline(vqa)

    @pytest.mark.parametrize("keep", [0, 40, 300])
    def test_corrupt_component_file(self, vqa: Path, keep: int) -> None:
        path = vqa / "text_encoder.onnx"
        path.write_bytes(path.read_bytes()[:keep])
        seal_again(vqa)
        with pytest.raises(VlmEdgeError) as caught:
            load_pipeline(vqa)
        assert caught.value.message.startswith(str(path))
        assert caught.value.hint

    def test_manifest_of_another_file(self, vqa: Path) -> None:
        (vqa / "decoder.onnx").write_bytes((vqa / "text_encoder.onnx").read_bytes())
        seal_again(vqa)
        with pytest.raises(VlmEdgeError, match="no output 'logits'"):
            load_pipeline(vqa)

    def test_missing_component_row_and_generation(self, vqa: Path) -> None:
        components = json.loads((vqa / "manifest.json").read_text())["components"]
        seal_again(vqa, components={name: row for name, row in components.items() if name != "decoder"})
        with pytest.raises(VlmEdgeError, match="needs the component 'decoder'"):
            load_pipeline(vqa)
        seal_again(vqa, components=components, generation=None)
        with pytest.raises(VlmEdgeError, match="generation"):
            load_pipeline(vqa)

    def test_unknown_engine_option(self, vqa: Path) -> None:
        seal_again(vqa, engine={"name": "onnxruntime", "version": "1", "threads": 1, "options": {"spining": True}})
        with pytest.raises(VlmEdgeError, match="spining"):
            load_pipeline(vqa)

    def test_engine_other_than_compiled_for(self, vqa: Path) -> None:
        seal_again(vqa, engine={"name": "openvino", "version": "1", "threads": 1, "options": {}})
        with pytest.raises(VlmEdgeError, match="compiled for openvino"):
            load_pipeline(vqa, engine="onnxruntime")

    def test_unknown_engine(self, vqa: Path) -> None:
        with pytest.raises(VlmEdgeError) as caught:
            load_pipeline(vqa, engine="onnxruntim")
        assert caught.value.hint is not None
        assert "onnxruntime" in caught.value.hint

    def test_graphs_on_openvino(self, vqa: Path) -> None:
        pytest.importorskip("openvino")
        images = random_images(3)
        expected = [load_pipeline(vqa, threads=1).answer(image, "is it red") for image in images]  # type: ignore[union-attr]
        pipeline = load_pipeline(vqa, engine="openvino", threads=1)
        assert isinstance(pipeline, VqaPipeline)
        assert [pipeline.answer(image, "is it red") for image in images] == expected


def test_answering_imports_neither_torch_nor_transformers_nor_onnx(vqa: Path, tmp_path: Path) -> None:
    path = save_image(tmp_path / "image.png", random_images(1)[0])
    script = (
        "import sys\n"
        "from vlm_edge.runtime import load_pipeline\n"
        "answer = load_pipeline(sys.argv[1]).answer(sys.argv[2], 'is it red')\n"
        "assert isinstance(answer, str)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxscript', 'nncf', 'openvino', 'tensorrt', 'optimum'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(vqa), str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
