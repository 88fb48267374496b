"""Which rung of the ladder knowledge stands on: text, warm prefix, cartridge, LoRA.

1. A fact that has changed is taken down to text at once, and so is one on weights that has changed twice.
   What depends on it goes before it.
2. What is used too little for its bytes gives them back. It goes to the best lower rung that still pays.
3. Over the budget, the cheapest to rebuild goes first.
4. What is stable climbs to the next rung whose gain pays for the making, where there is room. Room is taken
   only from subjects of clearly less worth, again the cheapest to rebuild first.

A rung's worth is the time that it saves a day, less the price of its bytes. Where not all have room, bytes
are worth what the first that has none would save with them: that is the gain of freeing them by a smaller
rung, and a part of it is the price. To enter a rung, a subject must be worth its bytes at a higher price than
to stay there, and each rung is kept for a while: nothing flaps. Nothing moves that another subject depends
on. Source: MemOS, MemScheduler (Li et al. 2025, arXiv 2507.03724).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace

from memserve.domain.ladder import (
    RUNGS,
    WEIGHTS,
    LadderAction,
    LadderBudget,
    LadderDecision,
    LadderUse,
    Rung,
    RungCost,
    Subject,
)
from memserve.policy.modules.rung_worth import (
    DEFAULT_RULES,
    MIB,
    LadderRules,
    check_subject,
    figures,
    mib,
    price_of,
    served_right,
    worth,
)
from memserve.policy.modules.selection import MOST_CHANGES


def decide(
    subjects: Sequence[Subject],
    budget: LadderBudget,
    spent_s: float,
    now_s: float,
    rules: LadderRules = DEFAULT_RULES,
) -> tuple[LadderDecision, ...]:
    """What becomes of each subject: one decision each, in the order in which they are carried out.

    Decisions to keep come last. spent_s: of the budget's seconds, so far in its period.
    Raises ValueError for two subjects of one name, and for costs that are not as RungCost says.
    """
    rules.check()
    board = _Board(subjects, budget, spent_s, now_s, rules)
    while any((board.take_down_changed(), board.leave_cold(), board.relieve(), board.climb())):
        pass  # each subject moves once, so that this ends
    return (*board.decisions, *board.kept())


class _Board:
    """Where everybody stands while it is decided."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        budget: LadderBudget,
        spent_s: float,
        now_s: float,
        rules: LadderRules,
    ) -> None:
        self._budget = budget
        self._spent_s = spent_s
        self._now_s = now_s
        self._rules = rules
        self._standing = {subject.name: subject for subject in sorted(subjects, key=lambda each: each.name)}
        if len(self._standing) != len(subjects):
            raise ValueError("two subjects have one name")
        for subject in subjects:
            check_subject(subject)
        self._freed_s = price_of(subjects, budget, rules)
        """What a MiB that becomes free saves a day."""
        self._price_s = max(rules.mib_day_s, self._freed_s / rules.entry**2)
        """What a MiB must save in a day."""
        self._moved: set[str] = set()
        self._waits: dict[str, str] = {}
        """Why a subject that would pay did not climb."""
        self._resident_bytes = sum(_cost(subject).resident_bytes for subject in subjects)
        self._held = {subject.name for subject in subjects if subject.rung is not Rung.TEXT}
        self._above: defaultdict[str, set[str]] = defaultdict(set)
        """By name, those whose present rung depends on its present rung."""
        for subject in subjects:
            self._lean(subject)
        self.decisions: list[LadderDecision] = []

    @property
    def _use(self) -> LadderUse:
        return LadderUse(self._resident_bytes, self._spent_s)

    def take_down_changed(self) -> bool:
        moved = len(self.decisions)
        for subject in list(self._standing.values()):
            if subject.rung is Rung.TEXT or subject.name in self._moved:
                continue
            if subject.outdated:
                self._take_down(subject.name, "a fact has changed since this was made of it", set())
            elif subject.rung in WEIGHTS and subject.changes > MOST_CHANGES:
                self._take_down(
                    subject.name,
                    f"a fact has changed {subject.changes} times, and more than {MOST_CHANGES} is not stable",
                    set(),
                )
            elif not self._is_supported(subject, subject.rung):
                self._take_down(subject.name, "what it depends on is gone", set())
        return len(self.decisions) > moved

    def _take_down(self, name: str, why: str, above: set[str]) -> None:
        """above: those that are being taken down for this one, or before it."""
        above = above | {name}
        for dependant in self._dependants(name):
            if dependant.name not in above:
                self._take_down(dependant.name, f"it depends on {name}, which goes: {why}", above)
        if self._standing[name].rung is not Rung.TEXT:
            self._move(self._standing[name], Rung.TEXT, why)

    def leave_cold(self) -> bool:
        moved = len(self.decisions)
        for subject in list(self._standing.values()):
            if subject.rung is Rung.TEXT or not self._may_move(subject):
                continue
            value = worth(subject, subject.rung, self._price_s)
            if served_right(subject, subject.rung, self._rules) and value >= 0:
                continue
            lower = [
                rung
                for rung in self._rungs(subject)
                if rung.height < subject.rung.height
                and self._enters(subject, rung)
                and self._has_room(subject, rung)
            ]
            best = max(
                lower,
                key=lambda rung: (worth(subject, rung, self._price_s), -rung.height),
                default=Rung.TEXT,
            )
            self._move(
                subject, best, f"it is not worth its bytes: {figures(subject, subject.rung, best, value)}"
            )
        return len(self.decisions) > moved

    def relieve(self) -> bool:
        moved = len(self.decisions)
        while self._use.resident_bytes > self._budget.resident_bytes:
            leaves = self._leaves()
            if not leaves:
                # A circle of subjects that depend on each other: it goes as a whole.
                leaves = [self._standing[name] for name in self._held]
            victim = min(leaves, key=self._rebuilt)
            over = self._use.resident_bytes - self._budget.resident_bytes
            why = (
                f"the budget is over by {mib(over)}, and this is the cheapest to rebuild: "
                f"{_cost(victim).make_s:.1f} s"
            )
            self._take_down(victim.name, why, set())
        return len(self.decisions) > moved

    def climb(self) -> bool:
        moved = len(self.decisions)
        self._waits.clear()
        wishes = [wish for subject in self._standing.values() for wish in self._wishes(subject)]
        for wish in sorted(wishes, key=lambda each: (-each.score, each.subject.name)):
            name, rung = wish.subject.name, wish.rung
            subject = self._standing[name]
            if not self._may_move(subject) or not self._is_supported(subject, rung):
                continue
            cost = subject.costs[rung]
            left_s = self._budget.make_s - self._spent_s
            if cost.make_s > left_s:
                self._waits[name] = (
                    f"{rung} pays, but takes {cost.make_s:.1f} s of making, of which "
                    f"{max(0.0, left_s):.1f} are left"
                )
                continue
            victims = self._victims(wish)
            if victims is None:
                self._waits[name] = (
                    f"{rung} pays, but takes {mib(cost.resident_bytes)}, and nobody of less worth has them"
                )
                continue
            for victim in victims:
                why = (
                    f"{name} is worth more than its room, and this is the cheapest to rebuild: "
                    f"{_cost(victim).make_s:.1f} s"
                )
                self._move(self._standing[victim.name], Rung.TEXT, why, makes_room_for=name)
            why = f"it pays: {figures(subject, subject.rung, rung, wish.gain)}"
            self._move(subject, rung, why)
        return len(self.decisions) > moved

    def kept(self) -> Iterator[LadderDecision]:
        use = self._use
        for subject in self._standing.values():
            if subject.name not in self._moved:
                yield LadderDecision(
                    subject.name,
                    LadderAction.KEEP,
                    subject.rung,
                    subject.rung,
                    self._why_kept(subject),
                    use,
                    use,
                )

    def _why_kept(self, subject: Subject) -> str:
        used = f"it is used {subject.uses_per_day:.2f} times a day"
        dependants = [each.name for each in self._dependants(subject.name)]
        if dependants:
            return f"{used}; {dependants[0]} depends on it"
        if (waits := self._waits.get(subject.name)) is not None:
            return f"{used}; {waits}"
        if self._now_s - subject.since_s < self._rules.dwell_s and subject.rung is not Rung.TEXT:
            return f"{used}; it came to its rung less than {self._rules.dwell_s / 3600:.1f} h ago"
        if not self._is_settled(subject, Rung.LORA):
            return f"{used}; a fact changed less than {self._rules.settle_s / 3600:.1f} h ago"
        if subject.changes > MOST_CHANGES:
            return f"{used}; a fact has changed {subject.changes} times, so that it is not distilled"
        value = worth(subject, subject.rung, self._price_s)
        return f"{used}; its rung saves {value:.2f} s a day beyond its bytes, and no higher one pays"

    def _wishes(self, subject: Subject) -> Iterator[_Wish]:
        """The nearest higher rung that pays, if any."""
        if not self._may_move(subject):
            return
        price = self._price_s
        for rung in self._rungs(subject):
            if rung.height <= subject.rung.height or not self._enters(subject, rung):
                continue
            if not self._is_settled(subject, rung):
                continue
            if rung in WEIGHTS and subject.changes > MOST_CHANGES:
                continue
            cost = subject.costs[rung]
            freed = max(0, _cost(subject).resident_bytes - cost.resident_bytes) / MIB
            # Others would save something with what it frees.
            freed_s = freed * (self._freed_s - price)
            gain = worth(subject, rung, price) - worth(subject, subject.rung, price) + freed_s
            if gain <= 0 or gain * self._rules.payback_days < cost.make_s:
                continue
            more = max(0, cost.resident_bytes - _cost(subject).resident_bytes)
            share = more / max(1, self._budget.resident_bytes) + cost.make_s / max(1.0, self._budget.make_s)
            yield _Wish(subject, rung, gain, gain / (share + 1e-6))
            return

    def _victims(self, wish: _Wish) -> list[Subject] | None:
        """Who leaves so that the wish fits, the first first. None: it does not fit."""
        subject, cost = wish.subject, wish.subject.costs[wish.rung]
        present = self._standing[subject.name]
        short = (
            self._use.resident_bytes
            - _cost(present).resident_bytes
            + cost.resident_bytes
            - self._budget.resident_bytes
        )
        victims: list[Subject] = []
        left = wish.gain
        while short > 0:
            gone = {victim.name for victim in victims}
            leaves = [
                each
                for each in self._leaves(gone)
                if each.name != subject.name
                and each.name not in cost.depends_on
                and each.name not in self._moved
                and self._has_dwelt(each)
                and _cost(each).resident_bytes > 0
                and self._displaced_at(each) <= left
            ]
            if not leaves:
                return None
            victim = min(leaves, key=self._rebuilt)
            left -= self._displaced_at(victim)
            short -= _cost(victim).resident_bytes
            victims.append(victim)
        return victims

    def _move(self, subject: Subject, rung: Rung, why: str, *, makes_room_for: str = "") -> None:
        before = self._use
        moved = replace(subject, rung=rung, since_s=self._now_s, outdated=False)
        self._standing[subject.name] = moved
        if rung is Rung.TEXT:
            self._held.discard(subject.name)
        else:
            self._held.add(subject.name)
        for name in _cost(subject).depends_on:
            self._above[name].discard(subject.name)
        self._lean(moved)
        self._resident_bytes += _cost(moved).resident_bytes - _cost(subject).resident_bytes
        self._moved.add(subject.name)
        self._spent_s += subject.costs[rung].make_s
        action = LadderAction.PROMOTE if rung.height > subject.rung.height else LadderAction.DEMOTE
        self.decisions.append(
            LadderDecision(subject.name, action, subject.rung, rung, why, before, self._use, makes_room_for)
        )

    def _rungs(self, subject: Subject) -> Iterator[Rung]:
        """That it can have, from below."""
        return (rung for rung in RUNGS if rung in subject.costs)

    def _enters(self, subject: Subject, rung: Rung) -> bool:
        return (
            rung is not Rung.TEXT
            and served_right(subject, rung, self._rules)
            and self._is_supported(subject, rung)
            and worth(subject, rung, self._price_s * self._rules.entry) > 0
        )

    def _is_supported(self, subject: Subject, rung: Rung) -> bool:
        """Whether what the rung depends on is there."""
        return all(
            name in self._standing and self._standing[name].rung is not Rung.TEXT
            for name in subject.costs[rung].depends_on
        )

    def _is_settled(self, subject: Subject, rung: Rung) -> bool:
        settle_s = self._rules.settle_s if rung in WEIGHTS else self._rules.settle_prefix_s
        return subject.changed_s is None or self._now_s - subject.changed_s >= settle_s

    def _has_dwelt(self, subject: Subject) -> bool:
        return self._now_s - subject.since_s >= self._rules.dwell_s

    def _may_move(self, subject: Subject) -> bool:
        return (
            subject.name not in self._moved
            and self._has_dwelt(subject)
            and not self._dependants(subject.name)
        )

    def _has_room(self, subject: Subject, rung: Rung) -> bool:
        cost = subject.costs[rung]
        bytes_after = self._use.resident_bytes - _cost(subject).resident_bytes + cost.resident_bytes
        return (
            bytes_after <= self._budget.resident_bytes and self._spent_s + cost.make_s <= self._budget.make_s
        )

    def _lean(self, subject: Subject) -> None:
        for name in _cost(subject).depends_on:
            self._above[name].add(subject.name)

    def _dependants(self, name: str) -> list[Subject]:
        return [self._standing[each] for each in sorted(self._above[name])]

    def _leaves(self, gone: Set[str] = frozenset()) -> list[Subject]:
        """Those above text that nobody depends on, without those that are gone."""
        return [
            self._standing[name]
            for name in self._held
            if name not in gone and (not (above := self._above[name]) or above <= gone)
        ]

    def _displaced_at(self, subject: Subject) -> float:
        """What another's gain must reach to take its room, in seconds a day."""
        return self._rules.entry * max(0.0, worth(subject, subject.rung, self._price_s))

    def _rebuilt(self, subject: Subject) -> tuple[float, float, str]:
        """The least goes first."""
        value = worth(subject, subject.rung, self._price_s)
        return _cost(subject).make_s, value, subject.name


@dataclass(frozen=True, slots=True)
class _Wish:
    subject: Subject
    rung: Rung
    gain: float
    """Seconds a day."""
    score: float
    """The gain for the share of the budget that it takes."""


def _cost(subject: Subject) -> RungCost:
    """Of its present rung."""
    return subject.costs[subject.rung]
