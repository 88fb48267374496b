"""Weeks of questions about documents: Zipf-popular, with hot sets that move and facts that change."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
FACT_TOKENS = 12
ZIPF = 1.2
WHOLE_SHARE = 0.4
"""Documents that stand in the prompt as a whole. The others are recalled by the sentence."""
SHORT_TOKENS, LONG_TOKENS = (200, 400), (800, 4000)
CHANGES_ONCE, CHANGES_OFTEN = 0.3, 0.1
"""Shares of the documents."""
OFTEN_S = 3 * DAY_S
MOVED_SHARE = 0.3
"""Of the places in the order of popularity that are dealt anew each week."""


@dataclass(frozen=True, slots=True)
class Document:
    """What is asked for."""

    name: str
    tokens: int
    whole: bool

    @property
    def facts(self) -> int:
        return self.tokens // FACT_TOKENS


@dataclass(frozen=True, slots=True)
class Question:
    """Somebody asks for a fact."""

    at_s: float
    document: int
    fact: int
    rank: int
    """The document's place in the week's order of popularity, from 0."""


@dataclass(frozen=True, slots=True)
class Change:
    """A fact gets another value."""

    at_s: float
    document: int
    fact: int


Event = Question | Change


def documents(count: int, chance: random.Random) -> list[Document]:
    """Of both kinds, in no order."""
    made = []
    for number in range(count):
        whole = chance.random() < WHOLE_SHARE
        tokens = chance.randint(*(LONG_TOKENS if whole else SHORT_TOKENS))
        made.append(Document(f"d{number:03d}", tokens, whole))
    return made


def events(of: list[Document], weeks: int, questions_a_day: int, chance: random.Random) -> Iterator[Event]:
    """In the order of their times."""
    changes = iter(sorted(_changes(of, weeks, chance), key=lambda each: each.at_s))
    change = next(changes, None)
    order = list(range(len(of)))
    chance.shuffle(order)
    upto = list(itertools.accumulate(1 / (rank + 1) ** ZIPF for rank in range(len(of))))
    at_s = 0.0
    for week in range(weeks):
        if week:
            _move(order, chance)
        while True:
            at_s += chance.expovariate(questions_a_day / DAY_S)
            if at_s >= (week + 1) * WEEK_S:
                at_s = (week + 1) * WEEK_S
                break
            while change is not None and change.at_s <= at_s:
                yield change
                change = next(changes, None)
            rank = min(bisect.bisect(upto, chance.random() * upto[-1]), len(of) - 1)
            document = order[rank]
            yield Question(at_s, document, chance.randrange(of[document].facts), rank)


def _changes(of: list[Document], weeks: int, chance: random.Random) -> Iterator[Change]:
    for number, document in enumerate(of):
        kind = chance.random()
        if kind < CHANGES_OFTEN:
            at_s = chance.expovariate(1 / OFTEN_S)
            while at_s < weeks * WEEK_S:
                # The same few facts: a price list, opening hours.
                yield Change(at_s, number, chance.randrange(3))
                at_s += chance.expovariate(1 / OFTEN_S)
        elif kind < CHANGES_OFTEN + CHANGES_ONCE:
            yield Change(chance.uniform(0, weeks * WEEK_S), number, chance.randrange(document.facts))


def _move(order: list[int], chance: random.Random) -> None:
    """Deal a part of the places anew."""
    places = chance.sample(range(len(order)), round(MOVED_SHARE * len(order)))
    moved = [order[place] for place in places]
    chance.shuffle(moved)
    for place, document in zip(places, moved, strict=True):
        order[place] = document
