"""Where a text may be cut: behind sentences of any script, behind clauses, between words.

Every function here takes time in proportion to the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

# These end a sentence where white space follows: a full stop also stands in numbers and abbreviations.
_SPACED = ".!?…։؟۔؛"
# These end a sentence wherever they stand: CJK, Indic, Burmese, Khmer, Tibetan, Ethiopic, Mongolian.
_ALWAYS = "。！？｡．।॥။៕។།༎።፧፨᠃"
_ENDS = re.compile(f"[{_SPACED}{_ALWAYS}]")
_CLOSERS = frozenset("\"'”’»)]}」』】）〉》›")
# Before these, and before single letters, a full stop is part of an abbreviation.
_ABBREVIATED = "dr mr mrs ms prof st nr no vs fig ca bzw vgl abs art e.g i.e z.b d.h u.a p.ex"
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_ABBREVIATION_MAX = 6
_CLAUSES = frozenset(",;:，；：、،؛၊፣፤·—–")


def sentences(text: str) -> Iterator[str]:
    """The sentences, each with the white space behind it. Put together they are the text."""
    begin = place = 0
    while match := _ENDS.search(text, place):
        end = _behind_marks(text, match.start())
        place = max(end, match.start() + 1)
        behind = _behind_space(text, end)
        always = any(mark in _ALWAYS for mark in text[match.start() : min(end, match.start() + 8)])
        if always or (behind > end and _ends_sentence(text, begin, match.start(), behind)):
            yield text[begin:behind]
            begin = place = behind
    if begin < len(text):
        yield text[begin:]


def pieces_of(text: str, fits: Callable[[str], bool], longest: int) -> Iterator[str]:
    """The text in pieces that fit, as it comes. Put together they are the text.

    A piece ends behind a line, else behind a clause, else behind a word. Only a word that does not fit itself
    is cut, between characters as a reader sees them.

    longest: how many characters a piece may have.
    """
    begin = 0
    while begin < len(text):
        size = longest
        while not fits(text[begin : begin + size]) and size > 1:
            size //= 2
        end = len(text) if begin + size >= len(text) else _good_end(text, begin, begin + size)
        yield text[begin:end]
        begin = end


def _behind_marks(text: str, place: int) -> int:
    """Where a run of marks that end a sentence ends, with the brackets and quotation marks behind it."""
    while place < len(text) and (text[place] in _SPACED or text[place] in _ALWAYS):
        place += 1
    while place < len(text) and text[place] in _CLOSERS:
        place += 1
    return place


def _behind_space(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _ends_sentence(text: str, begin: int, mark: int, behind: int) -> bool:
    """Whether a mark with white space behind it ends a sentence."""
    if text[mark] != ".":
        return True
    if behind < len(text) and text[behind].islower():
        return False
    first = mark
    while first > begin and mark - first <= _ABBREVIATION_MAX and not text[first - 1].isspace():
        first -= 1
    word = text[first:mark].lstrip("([\"'“‘«").lower()
    return not (word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha()))


def _good_end(text: str, begin: int, end: int) -> int:
    """The best place to cut in front of `end`: in the second half where there is one."""
    half = begin + (end - begin) // 2
    if (line := text.rfind("\n", half, end)) >= 0:
        return line + 1
    for place in range(end - 1, half, -1):
        if text[place] in _CLAUSES and (text[place] > "\u2e00" or text[place + 1].isspace()):
            return _space_within(text, place + 1, end)
    for place in range(end - 1, begin, -1):
        if text[place].isspace():
            return place + 1
    if text[end].isspace():
        return end
    place = end
    while place > begin + 1 and _belongs_to_the_one_before(text, place):
        place -= 1
    return place if place > begin + 1 or not _belongs_to_the_one_before(text, place) else end


def _space_within(text: str, place: int, end: int) -> int:
    while place < end and text[place].isspace():
        place += 1
    return place


def _belongs_to_the_one_before(text: str, place: int) -> bool:
    """Whether the character is an accent, a vowel sign, or joined: a cut in front of it would be seen."""
    character, before = text[place], text[place - 1]
    return (
        unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf", "Sk")
        or before in "\u200d\u094d"
        or (_is_flag(character) and _is_flag(before))
    )


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
