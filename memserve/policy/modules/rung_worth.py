"""What a rung of the ladder is worth to a subject, and the rules by which it is judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memserve.domain.ladder import RUNGS, LadderBudget, Rung, Subject

MIB = 1 << 20
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class LadderRules:
    """How eager the ladder is."""

    mib_day_s: float = 0.02
    """The least price of a MiB: the seconds that it must save in a day."""
    entry: float = 2.0
    """Times that price is what a subject must be worth to enter a rung, and its worth times this is what
    another must be worth to take its room."""
    payback_days: float = 7.0
    """Within so long a promotion must save the seconds that it takes to make."""
    dwell_s: float = DAY_S / 4
    """A subject that has moved stays so long, unless it changes or the budget is over."""
    settle_s: float = DAY_S
    """A subject whose facts changed less long ago does not climb to weights."""
    settle_prefix_s: float = DAY_S / 24
    """The same for a prefix, which is made again in seconds."""
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
    """Seconds a day of a MiB: what the first that the budget has no room for would save with it.

    Each is counted on the first rung that it would climb to. Where they stand does not count, so that a move
    does not change the price.
    """
    asked: list[tuple[float, int]] = []
    for subject in subjects:
        for rung in RUNGS[1:]:
            cost = subject.costs.get(rung)
            if cost is None or not served_right(subject, rung, rules):
                continue
            value = worth(subject, rung, 0.0)
            fits = 0 < cost.resident_bytes <= budget.resident_bytes
            if fits and value > rules.mib_day_s * cost.resident_bytes / MIB:
                asked.append((value / (cost.resident_bytes / MIB), cost.resident_bytes))
            break
    left_bytes = budget.resident_bytes
    for value, resident_bytes in sorted(asked, reverse=True):
        left_bytes -= resident_bytes
        if left_bytes < 0:
            return value
    return rules.mib_day_s


def served_right(subject: Subject, rung: Rung, rules: LadderRules) -> bool:
    """Whether the rung answers as much right as text, where both are known."""
    right, text = subject.costs[rung].right, subject.costs[Rung.TEXT].right
    return right is None or text is None or right >= text - rules.right_loss


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
