"""Lines of printed pages become paragraphs again. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memserve.memory.documents.sentences import sentences

_SENTENCE_ENDS = frozenset('.!?…:;。！？।؟۔»”"')
_WORDS = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)?")
# A sentence is not followed further than this onto the next page.
CARRIED_LINES_MAX = 5
_SOFT_HYPHEN = "\u00ad"
# Chinese, Japanese, Thai, Lao, Khmer and Burmese have no spaces between words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff01-\uff60]"
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a page, or a paragraph that was made of several."""

    text: str
    page: int
    level: int = 0
    """0: it is no heading."""


def paragraphs(lines: Sequence[Line]) -> Iterator[Line]:
    """An empty line ends a paragraph, and so does the end of a page.

    A sentence that goes on on the next page is whole, and the next paragraph begins behind it.
    """
    words = Counter(word.lower() for line in lines for word in _WORDS.findall(line.text))
    parts: list[str] = []
    page = before = carried = 0
    for line in lines:
        turned, before = line.page != before, line.page
        carried = 1 if turned else carried + 1 if carried else 0
        rest = line.text
        if parts and not line.level and carried and not _ends(parts):
            # The rest of a sentence from the page before.
            first = next(sentences(rest), "") if carried <= CARRIED_LINES_MAX else ""
            if first:
                _append(parts, first.strip(), words)
            rest = rest[len(first) :]
            if not rest and not _ends(parts) and first:
                continue
        if parts and (carried or line.level or not line.text):
            yield Line("".join(parts), page)
            parts = []
        carried = 0
        if line.level:
            yield line
        elif rest:
            page = page if parts else line.page
            _append(parts, rest, words)
    if parts:
        yield Line("".join(parts), page)


def _ends(parts: Sequence[str]) -> bool:
    return parts[-1][-1] in _SENTENCE_ENDS


def _append(parts: list[str], text: str, words: Counter[str]) -> None:
    """Put a line behind the others: its words are whole again."""
    if not parts:
        parts.append(text)
        return
    last = parts[-1]
    if last[-1] == _SOFT_HYPHEN:
        parts[-1] = last[:-1]
    elif last[-1] in "-‐" and text[0].islower() and len(last) > 1 and last[-2].isalpha():
        if not _keeps_hyphen(last, text, words):
            parts[-1] = last[:-1]
    elif not (_UNSPACED.match(last[-1]) and _UNSPACED.match(text[0])):
        parts.append(" ")
    parts.append(text)


def _keeps_hyphen(last: str, text: str, words: Counter[str]) -> bool:
    """Whether a word at a line's end has its hyphen anyway: the document has it so elsewhere."""
    begin = len(last) - 1
    while begin > 0 and _is_of_word(last[begin - 1]):
        begin -= 1
    end = 0
    while end < len(text) and _is_of_word(text[end]):
        end += 1
    first, second = last[begin:-1].lower(), text[:end].lower()
    return words[f"{first}-{second}"] > words[first + second]


def _is_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"
