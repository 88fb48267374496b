"""What a rung of the ladder is worth to a subject, and the rules by which it is judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memserve.domain.ladder import LadderBudget, Rung, Subject

MIB = 1 << 20
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class LadderRules:
    """How eager the ladder is."""

    mib_day_s: float = 0.02
    """The price of a MiB: the seconds that it must save in a day. Where more than the budget would pay, the
    price rises as much."""
    entry: float = 2.0
    """Times that price is what a subject must be worth to enter a rung, and its worth times this is what
    another must be worth to take its room."""
    payback_days: float = 30.0
    """Within so long a promotion must save the seconds that it takes to make."""
    dwell_s: float = DAY_S / 4
    """A subject that has moved stays so long, unless it changes or the budget is over."""
    settle_s: float = DAY_S
    """A subject whose facts changed less long ago does not climb."""
    right_loss: float = 0.05
    """A rung that answers so much less right than text is not taken."""

    def check(self) -> None:
        """Raises ValueError."""
        for name in ("mib_day_s", "payback_days", "dwell_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0")
        if not 1 <= self.entry < math.inf:
            raise ValueError("entry must be at least 1")


DEFAULT_RULES = LadderRules()


def worth(subject: Subject, rung: Rung, price: float) -> float:
    """Seconds a day that the rung saves against text, less what its bytes cost.

    price: seconds a day of a MiB.
    """
    saved_s = answer_s(subject, Rung.TEXT) - answer_s(subject, rung)
    return subject.uses_per_day * saved_s - price * subject.costs[rung].resident_bytes / MIB


def price_of(subjects: Sequence[Subject], budget: LadderBudget, rules: LadderRules) -> float:
    """Seconds a day of a MiB: it rises with how often the budget is asked for.

    It does not depend on where the subjects stand, so that a move does not change it.
    """
    asked = sum(
        max(
            (
                cost.resident_bytes
                for rung, cost in subject.costs.items()
                if worth(subject, rung, rules.mib_day_s) > 0
            ),
            default=0,
        )
        for subject in subjects
    )
    return rules.mib_day_s * max(1.0, asked / max(MIB, budget.resident_bytes))


def answer_s(subject: Subject, rung: Rung) -> float:
    """What an answer costs: its TTFT; where the shares are known, that of a right answer."""
    cost, text = subject.costs[rung], subject.costs[Rung.TEXT]
    if not cost.right or not text.right:
        return cost.ttft_s
    return cost.ttft_s / cost.right


def check_subject(subject: Subject) -> None:
    """Raises ValueError."""
    if not {Rung.TEXT, subject.rung} <= set(subject.costs):
        raise ValueError(f"{subject.name} has no costs of text, or of its rung")
    for rung, cost in subject.costs.items():
        numbers = (cost.computed_tokens, cost.ttft_s, cost.resident_bytes, cost.make_s, cost.right or 0.0)
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError(f"{subject.name} has a cost of {rung} below 0, or without end")
        if subject.name in cost.depends_on:
            raise ValueError(f"{subject.name} depends on itself")
    text = subject.costs[Rung.TEXT]
    if text.resident_bytes or text.make_s or text.depends_on:
        raise ValueError(f"{subject.name} takes bytes or seconds as text, or depends on something")
    if not 0 <= subject.uses_per_day < math.inf:
        raise ValueError(f"{subject.name} is used {subject.uses_per_day} times a day")


def figures(subject: Subject, before: Rung, after: Rung, a_day_s: float) -> str:
    old, new = subject.costs[before], subject.costs[after]
    return (
        f"{subject.uses_per_day:.2f} uses a day, an answer takes {answer_s(subject, before):.3f} s and "
        f"{old.computed_tokens} tokens as {before}, {answer_s(subject, after):.3f} s and "
        f"{new.computed_tokens} tokens as {after}; {a_day_s:+.2f} s a day for "
        f"{mib(new.resident_bytes)} in place of {mib(old.resident_bytes)}, and "
        f"{new.make_s:.1f} s of making"
    )


def mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"
