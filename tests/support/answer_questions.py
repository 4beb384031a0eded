"""Ask a bundle many questions: run by the aarch64 Python, with the packages of the device alone.

answer_questions.py BUNDLE QUESTIONS    QUESTIONS: a JSON list of [image, question]; prints the machine and answers
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

from vlm_edge.runtime import VqaPipeline, load_pipeline


def main(bundle: Path, questions: Path) -> None:
    pipeline = load_pipeline(bundle, threads=1)
    assert isinstance(pipeline, VqaPipeline)
    rows = json.loads(questions.read_text(encoding="utf-8"))
    answers = [pipeline.answer(image, question) for image, question in rows]
    print(json.dumps({"machine": platform.machine(), "answers": answers}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
