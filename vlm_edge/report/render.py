"""Jinja2 templates of the report, filled in: every value is escaped for the page that it goes into."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import vlm_edge
from vlm_edge.report import compare, escape, ladder, numbers, scale, views

_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(ladder.deciding_variant, ladder.headline, ladder.ladder_of, ladder.remarks),
    *(numbers.bound_text, numbers.format_of, numbers.interval_text, numbers.is_exact, numbers.limit_of),
    *(numbers.measured_text, numbers.measurement_text, numbers.named_format, numbers.reason_text, numbers.value_text),
    *(views.component_rows, views.control_of, views.host_lines, views.last_quantized, views.layer_rows, views.plain),
    *(views.shared_conditions, views.slice_name, views.task_rows, views.version_lines),
    *(compare.change_text, numbers.found_text, numbers.gate_headline, scale.scale_over),
)
"""Functions that templates call by name."""


class Head(NamedTuple):
    """A table's column. ``kind`` is a class of its cells (``number``, ``name``, ``plot``), ``below`` lines below the
    title."""

    title: str
    kind: str = ""
    below: str = ""


def html(template: str, **values: Any) -> str:
    """Fill in a template of ``templates/``, every value escaped for HTML, SVG and attributes."""
    return _environment(escape.markup).get_template(template).render(values)


def markdown(template: str, **values: Any) -> str:
    """Fill in a template of ``templates/``, every value escaped for one line of Markdown."""
    return _environment(escape.markdown).get_template(template).render(values)


@cache
def _environment(escaped: Callable[[object], str]) -> Environment:
    """Templates whose values pass through ``escaped``, but for the output of their own macros, which has passed."""
    environment = Environment(
        loader=PackageLoader("vlm_edge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escaped(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "fenced": lambda text: Markup("\n".join(escape.markdown_block(text.rstrip()))),  # for a block of code
        "fixed": lambda value, digits: "" if value is None else f"{value:.{digits}f}",
        "px": lambda value: f"{value:.2f}".rstrip("0").rstrip("."),
    }
    environment.globals |= {function.__name__: function for function in _FUNCTIONS}
    environment.globals |= {
        "as_json": partial(json.dumps, ensure_ascii=False),
        "as_yaml": partial(yaml.safe_dump, sort_keys=False, allow_unicode=True),
        "head": Head,
        "verdict_words": numbers.VERDICT_WORDS,
        "version": vlm_edge.__version__,
        "zip": partial(zip, strict=True),
    }
    return environment
