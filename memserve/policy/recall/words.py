"""The words of a text in any script, as they are indexed and searched.

1. In a script without spaces between words, every two neighbouring letters count as a word (bigrams).
2. Korean has spaces, and particles at the end of its words. The word counts, and its bigrams count too.
3. Texts are compared in NFKC, so that full-width letters, ligatures and composed accents equal the letters
   that people type.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator

# Thai to Tibetan, Myanmar, Khmer, kana with their extensions, Han with its extensions.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff"
)
_HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"
_MARKS = "".join(
    f"{chr(first)}-{chr(last)}"
    for first, last in [(0x300, 0x36F), (0x483, 0x487), (0x591, 0x5C7), (0x610, 0x61A)]
)
# Signs of Indic and Arabic scripts that stand inside words. Python's \w does not match them.
_SIGNS = (
    "\u064b-\u065f\u0670\u06d6-\u06ed\u0711\u0730-\u074a\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
    "\u0981-\u0dff"
)
_ASCII_WORD = re.compile(r"[^\W_]+")
_RUN = re.compile(
    f"(?P<unspaced>[{_UNSPACED}]+)|(?P<hangul>[{_HANGUL}]+)|"
    f"(?P<word>(?:(?![{_UNSPACED}{_HANGUL}_])[\\w{_MARKS}{_SIGNS}])+)"
)


def words_of(text: str) -> list[str]:
    """The words of a text in order, in lower case and of letters only.

    A word with other signs in it is spelt in hexadecimal.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return list(_words(unicodedata.normalize("NFKC", text).casefold()))


def _words(text: str) -> Iterator[str]:
    for match in _RUN.finditer(text):
        run = match[0]
        if match["word"]:
            yield _letters(run)
            continue
        letters = _with_their_marks(run)
        if match["hangul"] and len(letters) > 2:
            yield run
        if len(letters) == 1:
            yield _letters(run)
        for first, second in itertools.pairwise(letters):
            yield _letters(first + second)


def _with_their_marks(run: str) -> list[str]:
    """The letters, each with the vowels and tones that are written on it. Punctuation is left out."""
    letters: list[str] = []
    for sign in run:
        category = unicodedata.category(sign)
        if category.startswith("M") and letters:
            letters[-1] += sign
        elif category[0] in "LN":
            letters.append(sign)
    return letters


def _letters(word: str) -> str:
    """The word in letters only. A search engine takes any other sign for the end of a word."""
    return word if word.isalnum() else "x" + word.encode("utf-16-be").hex()
