"""Chat templates are programs: what never ends, fills the memory or fails is an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
from byte_tokenizer import write_byte_tokenizer

from vlm_edge.checkpoints import chat_template as templates
from vlm_edge.checkpoints.chat_template import MAX_IMAGES, chat_template, read_prompt, run_template
from vlm_edge.errors import VlmEdgeError

HOSTILE = {
    "nested loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 2 s"),
    "a power": ("{{ (9 ** (9 ** 9)) % 7 }}", "more than 2 s"),
    "two gigabytes": ("{{ 'x' * 2000000000 }}", "MemoryError"),
    "a wide format": ("{{ '%2000000000d' % 1 }}", "MemoryError"),
    "a long text": ("{{ 'x' * 200000 }}", "200,000 letters"),
    "overflow": ("{{ 'x' * (10 ** 30) }}", "OverflowError"),
    "recursion": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
    "deep brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "Error"),
    "division": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "undefined": ("{{ nothing.at.all }}", "UndefinedError"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
    "its own refusal": ("{{ raise_exception('no images here') }}", "no images here"),
    "Python's internals": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_a_template_that_can_not_be_run(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 2)
    template, message = HOSTILE[case]
    with pytest.raises(VlmEdgeError, match=message) as caught:
        run_template(Path("folder/chat_template.jinja"), template, {}, [(1, "what?")])
    assert caught.value.message.startswith("folder/chat_template.jinja: the chat template can't be run")


def test_it_says_for_how_many_images() -> None:
    template = "{{ messages[0]['content']|length / (3 - messages[0]['content']|length) }}"
    with pytest.raises(VlmEdgeError, match="about 2 images: ZeroDivisionError"):
        run_template(Path("x"), template, {}, [(0, "q"), (1, "q"), (2, "q")])


def test_texts_are_those_of_transformers() -> None:
    texts = run_template(Path("x"), tiny_llava.TEMPLATE, {"bos_token": "<s>"}, [(2, "what?"), (0, "x")])
    assert texts == ["USER: <image>\n<image>\nwhat? ASSISTANT:", "USER: x ASSISTANT:"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.jinja", b"\xff\xfe", "can't be read as UTF-8"),
        ("chat_template.json", b"[", "not valid JSON"),
        ("chat_template.json", b'{"chat_template": 5}', "chat_template: must be text, got int"),
        ("processor_config.json", b'{"chat_template": [{"name": "default"}, 7]}', None),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": "default", "template": []}]}',
            "got list",
        ),
    ],
)
def test_malformed_files_of_templates(name: str, content: bytes, message: str | None, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    if message is None:
        assert chat_template(tmp_path) is None
        return
    with pytest.raises(VlmEdgeError, match=message) as caught:
        chat_template(tmp_path)
    assert caught.value.message.startswith(str(tmp_path / name))


def test_the_prompt_is_the_same_from_any_file(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"image_token": "<image>", "image_token_id": 259, "image_tokens": 4}
    write_byte_tokenizer(tmp_path, ("<image>",), template=tiny_llava.TEMPLATE)
    before = read_prompt(tmp_path, **asked)
    assert len(before.layouts) == MAX_IMAGES + 1
    found = chat_template(tmp_path)
    assert found is not None
    found[0].unlink() if found[0].suffix == ".jinja" else None
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": tiny_llava.TEMPLATE}]
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": named}))
    assert read_prompt(tmp_path, **asked) == before
