"""Whether a text says what the served model does not say already: a write policy.

A statement first names what it is about, and then says something of it. Which subject it is no model can
foresee, known or not. So a sentence is judged by its end, where the news is, and there by its least expected
token: one wrong word makes a contradiction of a known sentence.

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


@dataclass(frozen=True, slots=True)
class SurprisePolicy:
    """Thresholds in nats, of the least expected token in the ends of a text's sentences."""

    known_below: float = 1.0
    """Below it a text is not stored: its token has at least 37 % of the probability."""
    new_from: float = 4.0
    """From it on a text is stored with full strength. Its token has at most 2 % of the probability."""
    least_strength: float = 0.25
    """Of a text that is only just stored."""
    end_share: float = 1 / 3
    """Of a sentence's tokens: its end."""

    def __post_init__(self) -> None:
        """Raises InvalidField."""
        if not 0 <= self.known_below <= self.new_from < math.inf:
            raise InvalidField("surprise.known_below", "from 0 to new_from, which is finite")
        if not 0 < self.least_strength <= 1:
            raise InvalidField("surprise.least_strength", "above 0, at most 1")
        if not 0 < self.end_share <= 1:
            raise InvalidField("surprise.end_share", "above 0, at most 1")


DEFAULT = SurprisePolicy()


def sentences(text: str) -> list[str]:
    """The text in sentences, which together are the text. White space stands before what follows it."""
    joined: list[str] = []
    for part in _ENDS.split(text):
        # What has no letter and no digit says nothing: the rest of "?!", or white space at the end.
        if joined and not any(character.isalnum() for character in part):
            joined[-1] += part
        else:
            joined.append(part)
    return [part for part in joined if part]


def judge(
    alone: Sequence[Sequence[float]],
    recalled: Sequence[Sequence[float]] | None,
    policy: SurprisePolicy = DEFAULT,
) -> SurpriseScore:
    """Decide whether a text is stored, and how strongly.

    1. With near memories, the text is judged behind them: what it repeats is expected, and what it
       contradicts is not, even where the model alone would say it.
    2. Without, it is judged by the model alone.

    alone, recalled: [sentences][tokens] log-probabilities; recalled is None where nothing near is remembered.
    Raises ValueError for a text without tokens.
    """
    logprobs = alone if recalled is None else recalled
    peak = max(_end_peak(sentence, policy.end_share) for sentence in logprobs)
    given = "the model" if recalled is None else "the model, with what is remembered,"
    if peak < policy.known_below:
        stored, strength = False, 0.0
        reason = f"{given} says it already: its least expected word costs {peak:.2f} nats, below "
        reason += f"{policy.known_below:g}"
    elif peak < policy.new_from:
        part = (peak - policy.known_below) / (policy.new_from - policy.known_below)
        stored, strength = True, policy.least_strength + (1 - policy.least_strength) * part
        reason = f"{given} half expects it: its least expected word costs {peak:.2f} nats; new is "
        reason += f"{policy.new_from:g}"
    else:
        stored, strength = True, 1.0
        reason = f"{given} does not expect it: its least expected word costs {peak:.2f} nats"
    without = None if recalled is None else _mean(recalled)
    return SurpriseScore(_mean(alone), without, stored, strength, reason)


def not_judged(why: str) -> SurpriseScore:
    """Of a text that could not be scored. It is stored as if there were no gate."""
    return SurpriseScore(None, None, True, 1.0, f"not judged: {why}")


def _end_peak(logprobs: Sequence[float], share: float) -> float:
    """The nats of the least expected token in the end of a sentence. 0 for an empty one."""
    end = max(math.ceil(len(logprobs) * share), 2)
    return max((-logprob for logprob in logprobs[-end:]), default=0.0)


def _mean(sentences: Sequence[Sequence[float]]) -> float:
    tokens = [-logprob for sentence in sentences for logprob in sentence]
    if not tokens:
        raise ValueError("a text without tokens")
    return sum(tokens) / len(tokens)
