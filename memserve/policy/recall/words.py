"""The words of a text in any script, as they are indexed and searched.

1. Texts are compared in NFKC, so that full-width letters, ligatures and composed accents equal the letters
   that people type. Digits of any script become 0 to 9. Arabic and Hebrew lose the marks of vowels, and
   letters that Arabic writers use for each other become one (`forms.py`).
2. In a script without spaces between words, every two neighbouring letters count as a word (bigrams), and
   every Han character by itself, too.
3. Korean has spaces, and particles at the end of its words. The word counts, and its bigrams count too.
4. Any other word counts as it is, and in its other forms: without accents, without its ending, and by its
   beginnings and ends where it is long enough to be a compound.
5. A code counts as a whole without its separators, and by its parts (`codes.py`).
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from memserve.policy.recall.codes import CONNECTORS, Run, chained, code_terms
from memserve.policy.recall.forms import unified, word_forms
from memserve.policy.recall.terms import FormWeight, Term

WORDS_MAX = 8192
"""A text of 8 KiB has at most as many words. What comes later in the text is not found by word."""
_FORMS_MAX = WORDS_MAX // 2
"""Behind so many words a word counts only as it is."""

# Thai to Tibetan, Myanmar, Khmer, kana with their extensions, Han with its extensions.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff"
)
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
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
_ASCII_RUN = re.compile(r"(?P<word>[^\W_]+)")
_ASCII_PIECE = re.compile(r"[^\W_]+(?:[-_./:@+,\\][^\W_]+)*")
"""Runs with at most one of CONNECTORS between them."""
_RUN = re.compile(
    f"(?P<unspaced>[{_UNSPACED}]+)|(?P<hangul>[{_HANGUL}]+)|"
    f"(?P<word>(?:(?![{_UNSPACED}{_HANGUL}_])[\\w{_MARKS}{_SIGNS}])+)"
)
_DIGIT = re.compile(r"[^\W\D0-9]")

_KEPT_PIECES, _KEPT_CHARS = 32_768, 32
"""Words whose forms are kept, because a search looks at the words of some sixty memories. About 25 MiB."""
_WHOLE = FormWeight.WHOLE
_BIGRAM, _HAN_CHARACTER, _HANGUL_BIGRAM = 1.0, 0.3, 0.6


def words_of(text: str) -> list[str]:
    """The words of a text in order, in lower case and of letters and digits only, at most WORDS_MAX.

    Each word is followed by its other forms. The texts that are indexed and the queries have their words from
    here, so that any form of a word finds any other. A word with other signs in it is spelt in hexadecimal.
    """
    words: list[str] = []
    for terms, spelt in _pieces_of(text):
        if len(words) + len(spelt) <= _FORMS_MAX:
            words.extend(spelt)
            continue
        for term in terms:
            words.extend(term.words if len(words) < _FORMS_MAX else term.words[:1])
            if len(words) >= WORDS_MAX:
                return words[:WORDS_MAX]
    return words


def terms_of(text: str) -> Iterator[Term]:
    """The terms of a text in order: its words, each with its other forms, and its codes."""
    for terms, _ in _pieces_of(text):
        yield from terms


def _pieces_of(text: str) -> Iterator[tuple[tuple[Term, ...], tuple[str, ...]]]:
    """The terms and words of the pieces of a text that no sign of a code parts, in order."""
    if text.isascii():
        for piece in _ASCII_PIECE.findall(text):
            yield _kept_piece(piece) if len(piece) <= _KEPT_CHARS else _piece(piece, _ASCII_RUN)
        return
    text = unified(unicodedata.normalize("NFKC", text))
    yield _piece(_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text), _RUN)


def _piece(text: str, runs: re.Pattern[str]) -> tuple[tuple[Term, ...], tuple[str, ...]]:
    terms = tuple(_terms(text, runs))
    return terms, tuple(word for term in terms for word in term.words)


@lru_cache(maxsize=_KEPT_PIECES)
def _kept_piece(piece: str) -> tuple[tuple[Term, ...], tuple[str, ...]]:
    return _piece(piece, _ASCII_RUN)


def _terms(text: str, runs: re.Pattern[str]) -> Iterator[Term]:
    chain: list[Run] = []
    for match in runs.finditer(text):
        if runs is _RUN and not match["word"]:
            yield from _chain_terms(chain)
            chain = []
            yield from _unspaced_terms(match[0], is_hangul=match["hangul"] is not None)
            continue
        gap = text[chain[-1].end : match.start()] if chain else ""
        if chain and not (gap in CONNECTORS and chained(chain[-1].text, gap, match[0])):
            yield from _chain_terms(chain)
            chain = []
        chain.append(Run(match[0], match.end(), gap if chain else ""))
    yield from _chain_terms(chain)


def _chain_terms(chain: Sequence[Run]) -> Iterator[Term]:
    """The words that stand together with no blank between, and the code that they make together."""
    codes, weight = code_terms(chain)
    for run in chain:
        forms = [(_letters(word), form) for word, form in word_forms(run.text)]
        yield Term(tuple(dict.fromkeys(forms)), weight)
        yield from code_terms([run])[0]
    if len(chain) > 1:
        yield from codes


def _unspaced_terms(run: str, *, is_hangul: bool) -> Iterator[Term]:
    letters = _with_their_marks(run.casefold())
    if is_hangul and len(letters) > 2:
        yield Term(((_letters(run.casefold()), _WHOLE),))
    if len(letters) == 1:
        yield Term(((_letters(letters[0]), _WHOLE),))
    for first, second in itertools.pairwise(letters):
        yield Term(
            ((_letters(first + second), _WHOLE),),
            _HANGUL_BIGRAM if is_hangul and len(letters) > 2 else _BIGRAM,
        )
    if len(letters) > 1 and not is_hangul:
        for letter in letters:
            if _HAN.match(letter):
                yield Term(((_letters(letter), _WHOLE),), _HAN_CHARACTER)


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
    return word if word.isalnum() else "x" + word.encode("utf-16-be", "surrogatepass").hex()
