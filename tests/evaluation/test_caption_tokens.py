"""Caption tokens against Stanford's PTBTokenizer 3.4.1, as pycocoevalcap runs it.

The expected tokens were written down from ``java -cp stanford-corenlp-3.4.1.jar edu.stanford.nlp.process.PTBTokenizer
-preserveLines -lowerCase``; where there is Java, the program itself is asked again.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.evaluation.tasks.captioning import PUNCTUATION, caption_tokens

TOKENIZER = "edu.stanford.nlp.process.PTBTokenizer"
CAPTIONS = {
    "A man riding a wave on top of a surfboard.": "a man riding a wave on top of a surfboard",
    "Two dogs, one black and one white, play in the snow!": "two dogs one black and one white play in the snow",
    "The girl's dress isn't pink; it's red.": "the girl 's dress is n't pink it 's red",
    "They're waiting, but it won't stop and they can't walk.": (
        "they 're waiting but it wo n't stop and they ca n't walk"
    ),
    '"STOP" is written on the sign; someone\'s hand-made it.': "stop is written on the sign someone 's hand-made it",
    "A woman (left) holds her daughter's hand [blurred].": (
        "a woman -lrb- left -rrb- holds her daughter 's hand -lsb- blurred -rsb-"
    ),
    "A clock that reads 5:30 p.m. on the side of St. Mary's church": (
        "a clock that reads 5:30 p.m. on the side of st. mary 's church"
    ),
    "Mr. and Mrs. Jones cannot see the U.S. flag on 5th Ave.": (
        "mr. and mrs. jones can not see the u.s. flag on 5th ave."
    ),
    "A $2.50 hot dog at 50% off, 10,000 people at the stadium.": (
        "a $ 2.50 hot dog at 50 % off 10,000 people at the stadium"
    ),
    "A black-and-white photo of a two-story house, circa 1920's.": (
        "a black-and-white photo of a two-story house circa 1920 's"
    ),
    "A white/brown cow w/o horns and w/ a tag.": "a white/brown cow w/o horns and w / a tag",
    "Salt & pepper on a table -- the B&W kitchen is empty...": "salt & pepper on a table the b&w kitchen is empty",
    "A T.V. on a stand near a 3-D poster, 1/2 of it torn": "a t.v. on a stand near a 3-d poster 1/2 of it torn",
    "Kids in '80s clothes dance to rock n roll at 7 o'clock.": "kids in '80s clothes dance to rock n roll at 7 o'clock",
    "The O'Brien family's boat, at the dock.": "the o'brien family 's boat at the dock",
    "She’s wearing her sister’s “lucky” hat – again…": "she 's wearing her sister 's lucky hat again",
    "What a view!! Is it a lake? No, it's the sea.": "what a view !! is it a lake no it 's the sea",
    "a man with a  tie\tand glasses": "a man with a tie and glasses",
    "A plate of food:rice,beans and 2 eggs": "a plate of food rice beans and 2 eggs",
    "I'm gonna eat it, you'd better not've.": "i 'm gon na eat it you 'd better not 've",
    "A café with naïve paintings on its wall": "a café with naïve paintings on its wall",
    "#1 fan e-mails his T-shirt no. 7 to the team etc.": "# 1 fan e-mails his t-shirt no. 7 to the team etc.",
    "A cat lies on the bed.It is sleeping": "a cat lies on the bed.it is sleeping",
    "A 7:30am train, an 8 a.m. bus; 100m from here.": "a 7:30 am train an 8 a.m. bus 100m from here",
}


@pytest.mark.parametrize(("caption", "expected"), CAPTIONS.items())
def test_tokens_are_the_ones_that_the_coco_evaluation_takes(caption: str, expected: str) -> None:
    assert " ".join(caption_tokens(caption)) == expected


def test_the_java_program_says_the_same(tmp_path: Path) -> None:
    package = pytest.importorskip("pycocoevalcap")
    java = shutil.which("java")
    if java is None:
        pytest.skip("no Java here")
    jar = Path(next(iter(package.__path__))) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    text = tmp_path / "captions.txt"
    text.write_text("\n".join(CAPTIONS), encoding="utf-8")
    done = subprocess.run(
        [java, "-Dfile.encoding=UTF-8", "-cp", jar, TOKENIZER, "-preserveLines", "-lowerCase", text],
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode("utf-8").splitlines()
    assert [[word for word in line.split() if word not in PUNCTUATION] for line in lines] == [
        expected.split() for expected in CAPTIONS.values()
    ]


def test_a_caption_of_punctuation_has_no_tokens() -> None:
    assert caption_tokens("") == []
    assert caption_tokens(" . , -- \"'' ... ; : ! ? ") == []


@given(st.text(max_size=60))
def test_tokens_hold_no_space_no_capital_and_no_punctuation_alone(caption: str) -> None:
    for token in caption_tokens(caption):
        assert token
        assert token.split() == [token]
        assert token == token.lower()
        assert token not in PUNCTUATION
