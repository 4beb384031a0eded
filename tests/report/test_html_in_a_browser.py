"""The page in a browser, 400 and 1280 pixels wide: nothing is wider than the page, no label of a picture is cut."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_records import full_record, regressions_of

from vlm_edge.core.record import RunRecord
from vlm_edge.report.html import run_html

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
MEASURE = """
frame.onload = () => {
  const page = frame.contentDocument, width = page.documentElement.clientWidth;
  const shown = [...page.querySelectorAll('body *')].filter(each => each.getClientRects().length);
  const beyond = shown.filter(each => {
    const box = each.getBoundingClientRect();
    return box.right > width + 1 || box.left < -1;
  });
  const boxes = [...page.querySelectorAll('text.label')].map(each => each.getBoundingClientRect()).filter(b => b.width);
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2;
  let labels = 0;
  boxes.forEach((a, i) => boxes.slice(0, i).forEach(b => { labels += meet(a, b); }));
  out.textContent = JSON.stringify({
    width, scroll: page.documentElement.scrollWidth, labels, shown: boxes.length,
    beyond: beyond.map(each => each.outerHTML.slice(0, 80)),
    scrolled: [...page.querySelectorAll('.wide')].filter(each => each.scrollWidth > each.clientWidth + 1).length,
  });
};
"""


def look(page: str, width: int, folder: Path) -> dict[str, Any]:
    """What a browser says of the page in a frame of that width, which may be narrower than any window."""
    frame = f'<iframe id="frame" style="border:0;width:{width}px" srcdoc="{html.escape(page, quote=True)}"></iframe>'
    file = folder / "frame.html"
    file.write_text(f'{frame}<pre id="out"></pre><script>{MEASURE}</script>', encoding="utf-8")
    assert CHROMIUM is not None
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/profile",
        "--dump-dom",
    ]
    command = [CHROMIUM, *options, "--virtual-time-budget=5000", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_cut_or_overlapping(record: RunRecord, width: int, tmp_path: Path) -> None:
    full = full_record(record, slices=15)
    variants = [
        *full.variants,
        full.variants[2].model_copy(update={"name": "prune-" + "cross-attention-and-" * 4 + "heads"}),
        full.variants[3].model_copy(update={"name": "W" * 90}),
    ]
    full = full.model_copy(update={"variants": variants})
    page = run_html(full, regressions_of(full)).replace("<details>", "<details open>")
    seen = look(page, width, tmp_path)
    assert seen["width"] == width
    assert seen["scroll"] <= width
    assert seen["beyond"] == []
    assert seen["scrolled"] == 0
    assert seen["shown"] == len(variants)
    assert seen["labels"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
@pytest.mark.parametrize("width", [400, 1280])
def test_a_real_run_is_not_cut(real: tuple[RunRecord, dict[str, Any]], width: int, tmp_path: Path) -> None:
    seen = look(run_html(*real), width, tmp_path)
    assert (seen["scroll"], seen["beyond"], seen["scrolled"], seen["labels"]) == (width, [], 0, 0)
