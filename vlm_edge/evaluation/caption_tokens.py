"""Captions to words, as the COCO caption evaluation takes them, without Java.

Chen, Fang, Lin et al., Microsoft COCO Captions (arXiv:1504.00325), section 3.2: the Penn Treebank tokenization of
Stanford's PTBTokenizer (version 3.4.1, ``-lowerCase``), then punctuation is left out. pycocoevalcap runs that program
in Java. What is written here are its rules for what captions hold: contractions split (``do n't``, ``man 's``,
``can not``), words with a hyphen, a slash or an abbreviation's periods kept whole, currency and percent signs apart,
brackets spelled ``-lrb-``. Its grammar knows more (URLs, e-mail addresses, smileys, the abbreviations of states and
companies): those come out otherwise. docs/measuring.md says how often the two agree.
"""

from __future__ import annotations

import re

PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--"])
PUNCTUATION |= {"...", ";"}
"""What pycocoevalcap leaves out. It lower-cases first and so keeps ``-lrb-``; ``!!`` and ``??`` are no member."""
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELLED = {
    "…": "...",
    "–": "--",
    "—": "--",
    "£": "#",
    "€": "$",
    "¢": "cents",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    '"': "''",
}
_SPELLED |= _BRACKETS

_ABBREVIATIONS = (
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|mrs?|ms|dr|prof|rev|gen|col|sgt|capt|lt|"
    r"gov|sen|rep|pres|st|ave|blvd|rd|mt|ft|dept|bldg|jr|sr|inc|co|corp|ltd|vs|etc|ph\.d"
)
"""Words that keep their period."""
_TWO_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}
"""Words that are two, and the letters of the first."""
_WORD = r"[^\W_](?:\w*[^\W_])?"
_ENDING = r"(?:['’](?:s|m|d|re|ve|ll)|n['’]t)"
_PART = rf"(?:(?!\w*n['’]t\b){_WORD}|\w+?(?=n['’]t\b))"
_TOKEN = re.compile(
    "|".join(
        [
            rf"(?P<ending>(?<=[\w.]){_ENDING}(?!\w))",
            rf"(?P<abbreviation>(?:{_ABBREVIATIONS})\.(?!\w))",
            r"(?P<initials>(?<![\w.])(?:[^\W\d_]\.)+(?:[^\W\d_](?!\w))?)",
            r"(?P<time>\d+:\d\d(?=[ap]\.?m\b))",
            r"(?P<number>(?<!\w)(?:\d+(?:[.,:/]\d+)+|\.\d+|[-+]\d+)(?![\w-])|no\.(?=\s?\d))",
            r"(?P<apostrophe>\bo['’]clock\b|\bma['’]am\b|\b[dlo]['’][^\W\d_]{2,}|['’]\d0s\b|['’](?:em|til|n)\b)",
            r"(?P<whole>\bw/o\b|(?-i:\b[A-Z]+(?:&[A-Z]+)+\b))",
            rf"(?P<word>{_PART}(?:[-/.]{_PART})*)",
            r"(?P<run>\.{3,}|-{2,}|[!?]+|``|'')",
            r"(?P<other>\S)",
        ]
    ),
    re.IGNORECASE,
)


def caption_tokens(caption: str) -> list[str]:
    """The words of one caption, in lower case, punctuation left out."""
    tokens: list[str] = []
    for match in _TOKEN.finditer(caption):
        tokens += _spelled(match.group().lower(), str(match.lastgroup))
    return [token for token in tokens if token not in PUNCTUATION]


def _spelled(token: str, kind: str) -> list[str]:
    """One match as the tokens it stands for."""
    if kind == "run" and token.startswith("."):
        return ["..."]
    if kind == "run" and token.startswith("-"):
        return ["--"]
    if kind == "ending":
        return [token.replace("’", "'")]
    if token in _TWO_WORDS:
        return [token[: _TWO_WORDS[token]], token[_TWO_WORDS[token] :]]
    return [_SPELLED.get(token, token)]
