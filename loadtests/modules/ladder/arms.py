"""Ways to keep documents: as text, all pinned, KV by least recent use, and the ladder."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loadtests.modules.ladder.costs import costs_of
from loadtests.modules.ladder.traffic import DAY_S, Change, Document, Question
from memserve.domain.ladder import (
    WEIGHTS,
    LadderAction,
    LadderBudget,
    LadderDecision,
    Rung,
    RungCost,
    Subject,
)
from memserve.policy.modules.promotion import decide
from memserve.policy.modules.use_rate import UseRate

REACTS_S = 1.0
"""From a change to the decision about it."""
SLOWED = 2.0
"""Seconds that a second of making takes, beside serving."""
NONE: frozenset[Rung] = frozenset()


@dataclass(frozen=True, slots=True)
class Served:
    """An answer."""

    cost: RungCost
    rung: Rung
    stale: bool = False
    """It comes from weights that were trained before the fact changed."""


class Arm(Protocol):
    """One way to keep the documents. Called in the order of time."""

    name: str

    def answer(self, question: Question) -> Served:
        """Serve a question."""
        ...

    def change(self, change: Change) -> None:
        """A fact has another value."""
        ...

    def tick(self, now_s: float) -> None:
        """An interval has passed."""
        ...

    def held(self) -> Mapping[int, int]:
        """Bytes by document."""
        ...

    def making_s(self) -> float:
        """Processor seconds for making, so far."""
        ...


class AllText:
    """Nothing is kept."""

    name = "all as text"

    def __init__(self, documents: Sequence[Document]) -> None:
        self._costs = [costs_of(each.tokens, whole=each.whole, kept=NONE) for each in documents]

    def answer(self, question: Question) -> Served:
        return Served(self._costs[question.document][Rung.TEXT], Rung.TEXT)

    def change(self, change: Change) -> None: ...

    def tick(self, now_s: float) -> None: ...

    def held(self) -> Mapping[int, int]:
        return {}

    def making_s(self) -> float:
        return 0.0


class AllPinned(AllText):
    """Every document's prefix is warm, whatever it takes."""

    name = "all pinned"

    def __init__(self, documents: Sequence[Document]) -> None:
        super().__init__(documents)
        self._made_s = sum(costs[Rung.PREFIX].make_s for costs in self._costs)

    def answer(self, question: Question) -> Served:
        return Served(self._costs[question.document][Rung.PREFIX], Rung.PREFIX)

    def change(self, change: Change) -> None:
        self._made_s += self._costs[change.document][Rung.PREFIX].make_s

    def held(self) -> Mapping[int, int]:
        return {number: costs[Rung.PREFIX].resident_bytes for number, costs in enumerate(self._costs)}

    def making_s(self) -> float:
        return self._made_s


class LeastRecent(AllText):
    """KV of the documents that stand in prompts, within the budget: the least recently used leaves."""

    name = "KV, least recent leaves"

    def __init__(self, documents: Sequence[Document], budget: LadderBudget) -> None:
        super().__init__(documents)
        self._documents = documents
        self._budget = budget
        self._kept: OrderedDict[int, int] = OrderedDict()

    def answer(self, question: Question) -> Served:
        number = question.document
        costs = self._costs[number]
        if number in self._kept:
            self._kept.move_to_end(number)
            return Served(costs[Rung.PREFIX], Rung.PREFIX)
        if self._documents[number].whole:
            self._kept[number] = costs[Rung.PREFIX].resident_bytes
            while sum(self._kept.values()) > self._budget.resident_bytes:
                self._kept.popitem(last=False)
        return Served(costs[Rung.TEXT], Rung.TEXT)

    def change(self, change: Change) -> None:
        self._kept.pop(change.document, None)

    def held(self) -> Mapping[int, int]:
        return self._kept


@dataclass(slots=True)
class _Standing:
    """A document on the ladder."""

    rung: Rung = Rung.TEXT
    since_s: float = -DAY_S
    before: Rung = Rung.TEXT
    """What it is served from until `ready_s`."""
    ready_s: float = 0.0
    rate: UseRate = field(default_factory=UseRate)
    uses: int = 0
    """Since the rate was counted."""
    changed: Counter[int] = field(default_factory=Counter)
    """By fact, how often."""
    changed_s: float | None = None
    unread: set[int] = field(default_factory=set)
    """Facts that have changed since the rung was made."""
    kept: frozenset[Rung] = NONE


class Ladder:
    """The policy decides at every tick, and a moment after each change."""

    name = "the ladder"

    def __init__(self, documents: Sequence[Document], budget: LadderBudget) -> None:
        self._documents = documents
        self._budget = budget
        self._standing = [_Standing() for _ in documents]
        self._numbers = {each.name: number for number, each in enumerate(documents)}
        self._due_s: float | None = None
        self._day = 0
        self._spent_s = 0.0
        self._made_s = 0.0
        self.moves: list[tuple[float, LadderDecision]] = []
        self.most_bytes = 0
        self.most_spent_s = 0.0
        self.stale_between = 0
        """Answers from weights between a change and the decision about it."""
        self.distilled_unstable = 0

    def answer(self, question: Question) -> Served:
        self._react(question.at_s)
        standing = self._standing[question.document]
        standing.uses += 1
        rung = standing.rung if question.at_s >= standing.ready_s else standing.before
        stale = rung in WEIGHTS and question.fact in standing.unread
        if stale and self._due_s is not None:
            self.stale_between += 1
            stale = False
        return Served(self._costs(question.document)[rung], rung, stale)

    def change(self, change: Change) -> None:
        self._react(change.at_s)
        standing = self._standing[change.document]
        standing.changed[change.fact] += 1
        standing.changed_s = change.at_s
        standing.unread.add(change.fact)
        standing.kept = NONE
        if self._due_s is None:
            self._due_s = change.at_s + REACTS_S

    def tick(self, now_s: float) -> None:
        self._react(now_s)
        self._decide(now_s)

    def held(self) -> Mapping[int, int]:
        return {
            number: self._costs(number)[standing.rung].resident_bytes
            for number, standing in enumerate(self._standing)
        }

    def making_s(self) -> float:
        return self._made_s

    def rungs(self) -> Counter[Rung]:
        """How many documents stand on each."""
        return Counter(standing.rung for standing in self._standing)

    def _react(self, now_s: float) -> None:
        if self._due_s is not None and now_s >= self._due_s:
            due_s, self._due_s = self._due_s, None
            self._decide(due_s)

    def _decide(self, now_s: float) -> None:
        if int(now_s / DAY_S) != self._day:
            self._day, self._spent_s = int(now_s / DAY_S), 0.0
        subjects = [self._subject(number, now_s) for number in range(len(self._documents))]
        for decision in decide(subjects, self._budget, self._spent_s, now_s):
            self.most_bytes = max(self.most_bytes, decision.after.resident_bytes)
            if decision.action is not LadderAction.KEEP:
                self._carry_out(decision, now_s)
        self.most_spent_s = max(self.most_spent_s, self._spent_s)

    def _carry_out(self, decision: LadderDecision, now_s: float) -> None:
        number = self._numbers[decision.subject]
        standing = self._standing[number]
        took_s = decision.after.make_s - decision.before.make_s
        self._spent_s += took_s
        self._made_s += took_s
        self.moves.append((now_s, decision))
        standing.before = Rung.TEXT if decision.to_rung is Rung.TEXT else decision.from_rung
        standing.rung, standing.since_s = decision.to_rung, now_s
        standing.ready_s = now_s + SLOWED * took_s
        standing.unread.clear()
        if decision.to_rung in WEIGHTS:
            standing.kept |= {decision.to_rung}
            self.distilled_unstable += max(standing.changed.values(), default=0) > 1

    def _subject(self, number: int, now_s: float) -> Subject:
        standing = self._standing[number]
        standing.rate = standing.rate.counted(standing.uses, now_s)
        standing.uses = 0
        return Subject(
            self._documents[number].name,
            standing.rung,
            standing.since_s,
            standing.rate.per_day(now_s),
            self._costs(number),
            max(standing.changed.values(), default=0),
            standing.changed_s,
            outdated=standing.rung is not Rung.TEXT and bool(standing.unread),
        )

    def _costs(self, number: int) -> Mapping[Rung, RungCost]:
        document, kept = self._documents[number], self._standing[number].kept
        return costs_of(document.tokens, whole=document.whole, kept=kept)
