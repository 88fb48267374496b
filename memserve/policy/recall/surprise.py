"""Whether a text says what the served model does not say already: a write policy.

A statement first names what it is about, and then says something of it. Which subject it is no model can
foresee, known or not. So a sentence is judged by its end, where the news is, and there by its least expected
word: one wrong word makes a contradiction of a known sentence. A word counts as a whole, however many tokens
it has: each digit of a new number is one of ten, and the number is not.

Source: a memory that stores by surprise, as Titans (Behrouz et al. 2024, arXiv 2501.00663), whose surprise is
a gradient. Here it is the negative log-probability, which a served model tells without training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from memserve.domain import SurpriseScore
from memserve.errors import InvalidField

# After a mark that white space follows, after a mark of a script that writes none, and after a line.
_ENDS = re.compile(r"(?<=[.!?؟।])(?=\s)|(?<=[。！？\n])")


_WORD = re.compile(r"\S+")
_MARKS = re.compile(r"^\W+|\W+$")
SAME_SUBJECT = 2 / 3
"""Of a sentence's words, so many are in a memory of the same subject."""
UNSPACED_WORDS = 3
"""A sentence of fewer words is taken character by character: its script may write no spaces."""


@dataclass(frozen=True, slots=True)
class SurprisePolicy:
    """Thresholds in nats, of the least expected word in the ends of a text's sentences."""

    known_below: float = 4.0
    """Below it a text is not stored: the word has at least 2 % of the probability. SmolLM2-135M gives what it
    knows of the world at most 3.6 nats, and a wrong capital at least 5.8."""
    new_from: float = 6.0
    """From it on a text is stored with full strength: the word has less than 0.3 % of the probability."""
    least_strength: float = 0.25
    """Of a text that is only just stored."""
    end_share: float = 1 / 3
    """Of a sentence's words: its end."""

    def __post_init__(self) -> None:
        """Raises InvalidField."""
        if not 0 <= self.known_below <= self.new_from < math.inf:
            raise InvalidField("surprise.known_below", "from 0 to new_from, which is finite")
        if not 0 < self.least_strength <= 1:
            raise InvalidField("surprise.least_strength", "above 0, at most 1")
        if not 0 < self.end_share <= 1:
            raise InvalidField("surprise.end_share", "above 0, at most 1")


DEFAULT = SurprisePolicy()


def judged_words(text: str, share: float, near: Sequence[str] = ()) -> list[tuple[int, int]]:
    """[words] where each begins and ends, of the words that a text is judged by.

    They are the last words of every sentence, at least one. Where a near memory has most of a sentence's
    words, the sentence is of the same subject: then every word counts too that no near memory has. Marks
    alone are no words. near: the texts that the model was shown.
    """
    memories = [{_plain(word) for word in _words(each)} for each in near]
    said: set[str] = set().union(*memories)
    found: list[tuple[int, int]] = []
    for start, end in _sentences(text):
        spans = _spans(text, start, end)
        words = [_plain(text[slice(*span)]) for span in spans]
        shared = max((sum(word in memory for word in words) for memory in memories), default=0)
        is_same = shared >= SAME_SUBJECT * len(words)
        first = len(spans) - max(int(len(spans) * share), 1)
        found += [
            span
            for place, (span, word) in enumerate(zip(spans, words, strict=True))
            if place >= first or (is_same and word not in said)
        ]
    return found


def judge(
    text: str,
    spans: Sequence[tuple[int, int]],
    alone: Sequence[float],
    recalled: Sequence[float] | None,
    near: Sequence[str] = (),
    policy: SurprisePolicy = DEFAULT,
) -> SurpriseScore:
    """Decide whether a text is stored, and how strongly.

    1. With near memories, the text is judged behind them: what it repeats is expected, and what it
       contradicts is not, even where the model alone would say it.
    2. Without, it is judged by the model alone, and by the ends of its sentences.

    spans: [tokens] where each begins and ends in the text. alone, recalled: [tokens] log-probabilities;
    recalled is None where nothing near is remembered. near: the memories' texts. Raises ValueError for a
    text without tokens.
    """
    if not alone:
        raise ValueError("a text without tokens")
    words = judged_words(text, policy.end_share, () if recalled is None else near)
    peak = _peak(text, words, spans, alone if recalled is None else recalled)
    given = "the model" if recalled is None else "the model, with what is remembered,"
    costs = f"its least expected word costs {peak:.2f} nats"
    if peak < policy.known_below:
        stored, strength = False, 0.0
        reason = f"{given} says it already: {costs}, below {policy.known_below:g}"
    elif peak < policy.new_from:
        part = (peak - policy.known_below) / (policy.new_from - policy.known_below)
        stored, strength = True, policy.least_strength + (1 - policy.least_strength) * part
        reason = f"{given} half expects it: {costs}; new is {policy.new_from:g}"
    else:
        stored, strength = True, 1.0
        reason = f"{given} does not expect it: {costs}"
    return SurpriseScore(
        _nats(alone), None if recalled is None else _nats(recalled), stored, strength, reason
    )


def not_judged(why: str) -> SurpriseScore:
    """Of a text that could not be scored. It is stored as if there were no gate."""
    return SurpriseScore(None, None, True, 1.0, f"not judged: {why}")


def _sentences(text: str) -> list[tuple[int, int]]:
    """[sentences] where each begins and ends. Together they are the text."""
    found: list[tuple[int, int]] = []
    start = 0
    for part in _ENDS.split(text):
        end = start + len(part)
        # What has no letter and no digit says nothing: the rest of "?!", or white space at the end.
        if found and not _says(part):
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
        start = end
    return found


def _says(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _spans(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """[words] of a sentence; its characters where it has few words."""
    words = [match.span() for match in _WORD.finditer(text, start, end)]
    if len(words) < UNSPACED_WORDS:
        words = [(place, place + 1) for place in range(start, end)]
    return [span for span in words if _says(text[slice(*span)])]


def _words(text: str) -> list[str]:
    spans = (span for sentence in _sentences(text) for span in _spans(text, *sentence))
    return [text[slice(*span)] for span in spans]


def _plain(word: str) -> str:
    """Without the marks around it, whatever its case."""
    return _MARKS.sub("", word).casefold()


def _peak(
    text: str,
    words: Sequence[tuple[int, int]],
    spans: Sequence[tuple[int, int]],
    logprobs: Sequence[float],
) -> float:
    """The nats of the least expected word. 0 where there is none."""
    peak, token = 0.0, 0
    for start, end in words:
        while token < len(spans) and spans[token][1] <= start:
            token += 1
        nats, place = 0.0, token
        # A mark that stands by itself is no part of the word: whether a sentence goes on is no news.
        while place < len(spans) and spans[place][0] < end:
            nats -= logprobs[place] if _says(text[slice(*spans[place])]) else 0.0
            place += 1
        peak = max(peak, nats)
    return peak


def _nats(logprobs: Sequence[float]) -> float:
    return -sum(logprobs) / len(logprobs)
