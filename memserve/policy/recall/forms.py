"""Other forms of a word: without accents, without its ending or its article, and the parts of a compound.

The rules know scripts and no languages. A rule that cuts too much cuts the same on both sides, and what it
finds counts less than the word itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from memserve.policy.recall.terms import FormWeight

_COMPOUND_MIN, _COMPOUND_MAX = 10, 32
_PART_MIN, _PART_MAX, _REST_MIN = 4, 16, 3
_STEM_MIN = 3

# Longest first within a script.
_LATIN_ENDINGS = ("ing", "es", "ed", "en", "er", "em", "e", "s", "n")
# fmt: off
_CYRILLIC_ENDINGS = (
    "ами", "ями", "ого", "его", "ому", "ему", "ыми", "ими", "ах", "ях", "ов", "ев", "ей", "ом", "ем", "ой",
    "ый", "ий", "ая", "яя", "ое", "ее", "ые", "ие", "ую", "юю", "ам", "ям", "ых", "их", "ым", "им",
    "а", "я", "о", "е", "ы", "и", "у", "ю", "ь", "й",
)
# fmt: on
# As Lucene's ArabicStemmer has them.
_ARABIC_PREFIXES = ("وال", "بال", "كال", "فال", "ال", "لل", "و")
_ARABIC_ENDINGS = ("ها", "ان", "ات", "ون", "ين", "يه", "ه", "ي")
_HEBREW_PREFIXES = ("וה", "וב", "ול", "ומ", "שה", "שב", "מה", "כש", *"הובלמשכ")

_ARABIC = re.compile("[\u0600-\u06ff]+")
_HEBREW = re.compile("[\u0590-\u05ff]+")
_LETTERED = re.compile("[a-z\u00df-\u052f\u1e00-\u1fff]+")
"""Latin, Greek and Cyrillic, where a word's parts and endings say something."""
_UNACCENTED = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ð": "d", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th"}
)
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
_BREVE_OF_SHORT_I = "и\u0306"

_DROPPED = "".join(
    chr(code)
    for first, last in ((0x591, 0x5BD), (0x5BF, 0x5BF), (0x5C1, 0x5C2), (0x5C4, 0x5C5), (0x5C7, 0x5C7))
    for code in range(first, last + 1)
)
_HARAKAT = "".join(map(chr, (*range(0x610, 0x61B), 0x640, *range(0x64B, 0x660), 0x670, *range(0x6D6, 0x6DD))))
_UNIFIED = str.maketrans(
    {
        **dict.fromkeys(_DROPPED + _HARAKAT, ""),
        **dict.fromkeys("أإآٱ", "ا"),
        **dict.fromkeys("ىی", "ي"),
        "ة": "ه",
        "ؤ": "و",
        "ئ": "ي",
        "ک": "ك",
        "٫": ".",
        "٬": ",",
        **dict.fromkeys("\u2010\u2011\u2012\u2013", "-"),
    }
)


def unified(text: str) -> str:
    """The text without vowel points, and with one letter for those that writers use for each other.

    text: in NFKC.
    Source: Lucene's ArabicNormalizer, and the Persian letters that its PersianNormalizer has.
    """
    return text.translate(_UNIFIED)


def word_forms(word: str) -> Iterator[tuple[str, float]]:
    """The word in lower case, then its other forms, each with its FormWeight. No form may come twice.

    word: in NFKC, of letters, digits and marks.
    """
    if word.isdecimal():
        yield word, FormWeight.WHOLE
        if word[0] == "0" and word.lstrip("0"):
            yield word.lstrip("0"), FormWeight.STEM
        return
    word = word.lower() if word.isascii() else unicodedata.normalize("NFC", word.casefold())
    forms = {word: FormWeight.WHOLE}
    for form, weight in _others(word):
        forms.setdefault(form, weight)
    yield from forms.items()


def _others(word: str) -> Iterator[tuple[str, float]]:
    if _ARABIC.fullmatch(word):
        yield from _semitic(word, _ARABIC_PREFIXES, _ARABIC_ENDINGS)
    elif _HEBREW.fullmatch(word):
        yield from _semitic(word, _HEBREW_PREFIXES, ())
    elif word.startswith("0x") and len(word) > 2:
        yield word[2:], FormWeight.UNACCENTED
    elif not word.isascii() and word[0] < "\u2000":
        plain = _unaccented(word)
        if plain:
            yield plain, FormWeight.UNACCENTED
            if (spelt := word.translate(_UMLAUTS)) != word:
                yield _unaccented(spelt), FormWeight.UNACCENTED
            yield from _cut(plain)
    else:
        yield from _cut(word)


def _cut(word: str) -> Iterator[tuple[str, float]]:
    """Without its ending, and the beginnings and ends of a word that is long enough for a compound."""
    if not _LETTERED.fullmatch(word):
        return
    stem = _without_ending(word, _CYRILLIC_ENDINGS if "\u0400" <= word[0] <= "\u052f" else _LATIN_ENDINGS)
    yield stem, FormWeight.STEM
    if not _COMPOUND_MIN <= len(word) <= _COMPOUND_MAX:
        return
    for length in range(min(_PART_MAX, len(stem) - _REST_MIN), _PART_MIN - 1, -1):
        weight = FormWeight.PART_OF_COMPOUND * length / len(stem)
        yield stem[-length:], weight
        yield stem[:length], weight


def _semitic(word: str, prefixes: tuple[str, ...], endings: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    bare = word
    for prefix in prefixes:
        if word.startswith(prefix) and len(word) - len(prefix) >= _STEM_MIN:
            bare = word.removeprefix(prefix)
            yield bare, FormWeight.UNPREFIXED
            break
    yield _without_ending(bare, endings), FormWeight.STEM


def _without_ending(word: str, endings: tuple[str, ...]) -> str:
    for ending in endings:
        if word.endswith(ending) and len(word) - len(ending) >= _STEM_MIN:
            return word.removesuffix(ending)
    return word


def _unaccented(word: str) -> str:
    """The word without accents. The Russian short i stays, because it is a letter of its own."""
    parts = unicodedata.normalize("NFD", word.translate(_UNACCENTED))
    kept = "".join(
        sign
        for place, sign in enumerate(parts)
        if not unicodedata.combining(sign) or parts[place - 1 : place + 1] == _BREVE_OF_SHORT_I
    )
    return unicodedata.normalize("NFC", kept)
