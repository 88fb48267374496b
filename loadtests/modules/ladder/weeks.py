"""Runs one arm over the weeks, and counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from loadtests.modules.ladder.arms import Arm
from loadtests.modules.ladder.traffic import DAY_S, WEEK_S, Change, Document, Event

TICK_S = 3600.0
HOT_SHARE = 0.1
"""The most asked for documents of a week."""
UNASKED_S = 5 * DAY_S


@dataclass(slots=True)
class Answers:
    """Of a group of questions."""

    count: int = 0
    seconds: float = 0.0
    tokens: int = 0
    right: float = 0.0

    @property
    def mean_s(self) -> float:
        return self.seconds / max(1, self.count)

    @property
    def right_s(self) -> float:
        """Seconds for a right answer."""
        return self.seconds / max(1e-9, self.right)


@dataclass(slots=True)
class Weeks:
    """What an arm did."""

    hot: Answers = field(default_factory=Answers)
    other: Answers = field(default_factory=Answers)
    hot_by_day: defaultdict[int, Answers] = field(default_factory=lambda: defaultdict(Answers))
    stale: int = 0
    """Answers from weights, after the decision about the change."""
    bytes_by_day: list[int] = field(default_factory=list)
    most_bytes: int = 0
    unasked_bytes: int = 0
    """The most, at an end of a day, of documents that nobody had asked for in UNASKED_S."""
    making_s: float = 0.0


def run(arm: Arm, documents: Sequence[Document], events: Iterable[Event]) -> Weeks:
    """Returns what the arm did with the events."""
    weeks = Weeks()
    hot = max(1, round(HOT_SHARE * len(documents)))
    asked_s = [0.0] * len(documents)
    next_s = TICK_S
    for event in events:
        while event.at_s >= next_s:
            arm.tick(next_s)
            if next_s % DAY_S < TICK_S:
                _end_day(weeks, arm, asked_s, next_s)
            next_s += TICK_S
        if isinstance(event, Change):
            arm.change(event)
            continue
        asked_s[event.document] = event.at_s
        served = arm.answer(event)
        groups = [weeks.other]
        if event.rank < hot:
            groups = [weeks.hot, weeks.hot_by_day[int(event.at_s / DAY_S)]]
        for answers in groups:
            answers.count += 1
            answers.seconds += served.cost.ttft_s
            answers.tokens += served.cost.computed_tokens
            answers.right += served.cost.right or 0.0
        weeks.stale += served.stale
    weeks.making_s = arm.making_s()
    return weeks


def _end_day(weeks: Weeks, arm: Arm, asked_s: Sequence[float], now_s: float) -> None:
    held = arm.held()
    total = sum(held.values())
    weeks.bytes_by_day.append(total)
    weeks.most_bytes = max(weeks.most_bytes, total)
    if now_s >= WEEK_S:
        unasked = sum(size for number, size in held.items() if now_s - asked_s[number] > UNASKED_S)
        weeks.unasked_bytes = max(weeks.unasked_bytes, unasked)
