"""The ladder: what climbs, what comes down, in which order, and within which budget."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from memserve.policy.modules.rung_worth import DEFAULT_RULES, worth
from memserve.policy.modules.use_rate import UseRate

MIB = 1 << 20
DAY_S = 86_400.0
NOW_S = 100 * DAY_S
BUDGET = LadderBudget(200 * MIB, 1000.0)
COSTS = {
    Rung.TEXT: RungCost(4000, 14.0, 0, 0.0),
    Rung.PREFIX: RungCost(30, 0.2, 92 * MIB, 14.0),
    Rung.CARTRIDGE: RungCost(30, 0.12, 24 * MIB, 300.0),
    Rung.LORA: RungCost(30, 0.10, 10 * MIB, 230.0),
}


def subject(name: str = "town", rung: Rung = Rung.TEXT, uses: float = 20.0, **changes: object) -> Subject:
    return replace(Subject(name, rung, 0.0, uses, COSTS), **changes)  # type: ignore[arg-type]


def moves(decisions: Sequence[LadderDecision]) -> list[tuple[str, Rung, Rung]]:
    return [
        (each.subject, each.from_rung, each.to_rung)
        for each in decisions
        if each.action is not LadderAction.KEEP
    ]


def applied(
    subjects: Sequence[Subject], decisions: Sequence[LadderDecision], now_s: float = NOW_S
) -> list[Subject]:
    """As they stand when the decisions have been carried out."""
    standing = {each.name: each for each in subjects}
    for name, _, rung in moves(decisions):
        standing[name] = replace(standing[name], rung=rung, since_s=now_s, outdated=False)
    return list(standing.values())


def held_bytes(subjects: Sequence[Subject]) -> int:
    return sum(each.costs[each.rung].resident_bytes for each in subjects)


@st.composite
def ladders(draw: st.DrawFn) -> tuple[list[Subject], LadderBudget, float]:
    """Subjects that may depend on those before them, a budget, and the seconds that are spent."""
    subjects: list[Subject] = []
    for place in range(draw(st.integers(1, 8))):
        costs = {Rung.TEXT: RungCost(draw(st.integers(0, 5000)), draw(st.floats(0.01, 20)), 0, 0.0)}
        before = [each.name for each in subjects]
        for rung in draw(st.sets(st.sampled_from([Rung.PREFIX, *WEIGHTS]))):
            costs[rung] = RungCost(
                draw(st.integers(0, 500)),
                draw(st.floats(0.01, 2)),
                draw(st.integers(0, 60)) * MIB,
                draw(st.floats(0, 400)),
                draw(st.sampled_from([None, 0.2, 0.9])),
                tuple(draw(st.lists(st.sampled_from(before), max_size=2, unique=True))) if before else (),
            )
        changed_ago_s = draw(st.none() | st.floats(0, 3 * DAY_S))
        rung = draw(st.sampled_from(sorted(costs)))
        subjects.append(
            Subject(
                f"s{place}",
                rung,
                NOW_S - draw(st.floats(0, 3 * DAY_S)),
                draw(st.floats(0, 50)),
                costs,
                draw(st.integers(0, 3)),
                None if changed_ago_s is None else NOW_S - changed_ago_s,
                rung is not Rung.TEXT and draw(st.booleans()),
            )
        )
    budget = LadderBudget(draw(st.integers(0, 200)) * MIB, draw(st.floats(0, 1000)))
    return subjects, budget, draw(st.floats(0, 1200))


Ladder = tuple[list[Subject], LadderBudget, float]


@given(ladders())
def test_the_budget_is_never_exceeded(ladder: Ladder) -> None:
    subjects, budget, spent_s = ladder
    decisions = decide(subjects, budget, spent_s, NOW_S)
    limit = max(budget.resident_bytes, held_bytes(subjects))
    standing = subjects
    for decision in decisions:
        standing = applied(standing, [decision])
        assert held_bytes(standing) == decision.after.resident_bytes <= limit
        assert decision.after.make_s <= max(budget.make_s, spent_s) + 1e-9
    assert held_bytes(standing) <= budget.resident_bytes


@given(ladders())
def test_nothing_goes_before_what_depends_on_it(ladder: Ladder) -> None:
    subjects, budget, spent_s = ladder
    standing = {each.name: each for each in subjects}
    for name, _, rung in moves(decide(subjects, budget, spent_s, NOW_S)):
        leaning = [
            each.name
            for each in standing.values()
            if each.rung is not Rung.TEXT and name in each.costs[each.rung].depends_on
        ]
        assert not leaning, f"{name} moves to {rung}, on which {leaning} depend"
        assert all(standing[needed].rung is not Rung.TEXT for needed in standing[name].costs[rung].depends_on)
        standing[name] = replace(standing[name], rung=rung)


@given(ladders())
def test_the_unstable_is_never_distilled_and_the_changed_is_text_at_once(ladder: Ladder) -> None:
    subjects, budget, spent_s = ladder
    for each in applied(subjects, decide(subjects, budget, spent_s, NOW_S)):
        assert each.rung not in WEIGHTS or each.changes <= 1
        assert not each.outdated or each.rung is Rung.TEXT
    for decision in decide(subjects, budget, spent_s, NOW_S):
        before = next(each for each in subjects if each.name == decision.subject)
        rules = DEFAULT_RULES
        settle_s = rules.settle_s if decision.to_rung in WEIGHTS else rules.settle_prefix_s
        settled = before.changed_s is None or NOW_S - before.changed_s >= settle_s
        assert decision.action is not LadderAction.PROMOTE or (settled and not before.outdated)


@given(ladders(), st.randoms(use_true_random=False))
def test_everybody_gets_one_decision_whatever_the_order(ladder: Ladder, chance: random.Random) -> None:
    subjects, budget, spent_s = ladder
    decisions = decide(subjects, budget, spent_s, NOW_S)
    assert sorted(each.subject for each in decisions) == sorted(each.name for each in subjects)
    assert all(each.reason for each in decisions)
    mixed = list(subjects)
    chance.shuffle(mixed)
    assert decide(mixed, budget, spent_s, NOW_S) == decisions


@given(ladders())
def test_carried_out_decisions_leave_nothing_to_decide(ladder: Ladder) -> None:
    subjects, budget, spent_s = ladder
    decisions = decide(subjects, budget, spent_s, NOW_S)
    again = decide(applied(subjects, decisions), budget, decisions[-1].after.make_s, NOW_S)
    assert moves(again) == []


@settings(max_examples=50)
@given(ladders(), st.floats(0.75, 1.3))
def test_a_use_that_wavers_moves_nobody_back_and_forth(ladder: Ladder, wavers: float) -> None:
    subjects, _, _ = ladder
    subjects = [replace(each, outdated=False, changed_s=None, since_s=0.0) for each in subjects]
    budget = LadderBudget(10_000 * MIB, 1e6)
    now_s, spent_s, moved = NOW_S, 0.0, {each.name: [each.rung.height] for each in subjects}
    for day in range(8):
        now_s += DAY_S
        used = [
            replace(each, uses_per_day=each.uses_per_day * (wavers if day % 2 else 1)) for each in subjects
        ]
        decisions = decide(used, budget, spent_s, now_s)
        for name, _, rung in moves(decisions):
            moved[name].append(rung.height)
        subjects = applied(subjects, decisions, now_s)
    for heights in moved.values():
        turned = [later > before for before, later in itertools.pairwise(heights)]
        assert turned == sorted(turned), f"up and down again: {heights}"


def test_what_is_used_climbs_a_rung_at_a_time() -> None:
    standing, now_s, seen = [subject(uses=2500.0)], NOW_S, []
    for _ in range(4):
        now_s += DAY_S
        decisions = decide(standing, BUDGET, 0.0, now_s)
        standing = applied(standing, decisions, now_s)
        seen.append(standing[0].rung)
    assert seen == [Rung.PREFIX, Rung.CARTRIDGE, Rung.LORA, Rung.LORA]


def test_a_reason_has_the_figures() -> None:
    (decision,) = decide([subject()], BUDGET, 0.0, NOW_S)
    assert decision.reason == (
        "it pays: 20.00 uses a day, an answer takes 14.000 s and 4000 tokens as text, 0.200 s and 30 tokens "
        "as prefix; +274.16 s a day for 92.0 MiB in place of 0.0 MiB, and 14.0 s of making"
    )
    assert (decision.before.resident_bytes, decision.after.resident_bytes) == (0, 92 * MIB)
    assert (decision.before.make_s, decision.after.make_s) == (0.0, 14.0)


def test_what_is_not_used_any_more_gives_its_bytes_back() -> None:
    decisions = decide([subject(rung=Rung.CARTRIDGE, uses=0.01)], BUDGET, 0.0, NOW_S)
    assert moves(decisions) == [("town", Rung.CARTRIDGE, Rung.TEXT)]
    assert "not worth its bytes: 0.01 uses a day" in decisions[0].reason


def test_under_pressure_the_cheapest_to_rebuild_goes_first() -> None:
    standing = [
        subject("dear", Rung.CARTRIDGE, uses=1.0),
        subject("cheap", Rung.PREFIX, uses=500.0),
        subject("dearer", Rung.LORA, uses=1.0),
    ]
    decisions = decide(standing, LadderBudget(40 * MIB, 0.0), 0.0, NOW_S)
    assert moves(decisions) == [("cheap", Rung.PREFIX, Rung.TEXT)]
    assert "over by 86.0 MiB, and this is the cheapest to rebuild: 14.0 s" in decisions[0].reason


def test_what_a_changed_subject_carries_goes_before_it() -> None:
    under = {**COSTS, Rung.PREFIX: replace(COSTS[Rung.PREFIX], depends_on=("tone",))}
    standing = [
        subject("tone", Rung.LORA, outdated=True),
        subject("hall", Rung.PREFIX, costs=under),
        subject("yard", Rung.PREFIX),
    ]
    decisions = decide(standing, BUDGET, 0.0, NOW_S)
    assert moves(decisions)[:2] == [("hall", Rung.PREFIX, Rung.TEXT), ("tone", Rung.LORA, Rung.TEXT)]
    assert decisions[0].reason.startswith("it depends on tone, which goes: a fact has changed")


def test_room_is_taken_from_those_of_clearly_less_worth() -> None:
    budget = LadderBudget(100 * MIB, 1000.0)
    held = subject("held", Rung.PREFIX, uses=1.0)
    displacing = decide([held, subject("hot", uses=20.0)], budget, 0.0, NOW_S)
    assert moves(displacing) == [("held", Rung.PREFIX, Rung.TEXT), ("hot", Rung.TEXT, Rung.PREFIX)]
    assert [each.makes_room_for for each in displacing] == ["hot", ""]
    alike = replace(held, uses_per_day=15.0, costs={rung: COSTS[rung] for rung in (Rung.TEXT, Rung.PREFIX)})
    warm = replace(alike, name="warm", rung=Rung.TEXT, uses_per_day=20.0)
    decisions = decide([alike, warm], budget, 0.0, NOW_S)
    assert moves(decisions) == []
    assert "prefix pays, but takes 92.0 MiB, and nobody of less worth has them" in decisions[1].reason


def test_a_rung_that_answers_less_right_is_not_taken() -> None:
    costs = {rung: replace(cost, right=0.9) for rung, cost in COSTS.items()}
    worse = {**costs, Rung.PREFIX: replace(costs[Rung.PREFIX], right=0.8)}
    assert moves(decide([subject(costs=worse)], BUDGET, 0.0, NOW_S)) == [("town", Rung.TEXT, Rung.CARTRIDGE)]
    assert moves(decide([subject(rung=Rung.PREFIX, costs=worse)], BUDGET, 0.0, NOW_S)) == [
        ("town", Rung.PREFIX, Rung.TEXT)
    ]


def test_what_depends_on_each_other_goes_together() -> None:
    ring = [
        subject(name, Rung.LORA, costs={**COSTS, Rung.LORA: replace(COSTS[Rung.LORA], depends_on=(other,))})
        for name, other in (("a", "b"), ("b", "a"))
    ]
    assert len(moves(decide(ring, LadderBudget(0, 0.0), 0.0, NOW_S))) == 2


def test_why_it_is_kept_is_told() -> None:
    fresh = subject("fresh", changed_s=NOW_S - 60)
    unstable = subject("unstable", rung=Rung.PREFIX, changes=2)
    poor = subject("poor")
    reasons = {
        each.subject: each.reason
        for each in decide([fresh, unstable, poor], replace(BUDGET, make_s=10.0), 0.0, NOW_S)
    }
    assert "a fact changed less than 24.0 h ago" in reasons["fresh"]
    assert "has changed 2 times, so that it is not distilled" in reasons["unstable"]
    assert "prefix pays, but takes 14.0 s of making, of which 10.0 are left" in reasons["poor"]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ([subject(), subject()], "one name"),
        ([subject(costs={Rung.PREFIX: COSTS[Rung.PREFIX]})], "no costs of text"),
        ([subject(costs={**COSTS, Rung.TEXT: RungCost(0, 1.0, 1, 0.0)})], "takes bytes"),
        ([subject(costs={**COSTS, Rung.LORA: RungCost(0, 1.0, 1, float("nan"))})], "without end"),
        ([subject(costs={**COSTS, Rung.LORA: RungCost(0, 1.0, 1, 1.0, None, ("town",))})], "on itself"),
        ([subject(uses=-1.0)], "used -1.0 times"),
    ],
)
def test_impossible_subjects_are_refused(broken: list[Subject], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decide(broken, BUDGET, 0.0, NOW_S)


def test_where_others_wait_for_its_bytes_little_use_is_not_enough() -> None:
    held = subject("held", Rung.PREFIX, uses=0.5)
    waiting = subject("waiting", uses=30.0, changed_s=NOW_S)
    assert moves(decide([held], LadderBudget(100 * MIB, 0.0), 0.0, NOW_S)) == []
    assert moves(decide([held, waiting], LadderBudget(200 * MIB, 0.0), 0.0, NOW_S)) == []
    hotter = replace(waiting, name="hotter", uses_per_day=40.0)
    assert moves(decide([held, waiting, hotter], LadderBudget(100 * MIB, 0.0), 0.0, NOW_S)) == [
        ("held", Rung.PREFIX, Rung.TEXT)
    ]
    # What has no room in any case makes nothing dearer.
    assert moves(decide([held, waiting, hotter], LadderBudget(50 * MIB, 0.0), 0.0, NOW_S)) == [
        ("held", Rung.PREFIX, Rung.TEXT)
    ]


def test_bytes_that_become_free_count_where_others_wait_for_them() -> None:
    costs = {**COSTS, Rung.CARTRIDGE: replace(COSTS[Rung.CARTRIDGE], make_s=400.0)}
    held = subject("held", Rung.PREFIX, costs=costs)
    assert moves(decide([held], LadderBudget(100 * MIB, 5000.0), 0.0, NOW_S)) == []
    waiting = subject("waiting", uses=10.0, changed_s=NOW_S)
    assert moves(decide([held, waiting], LadderBudget(100 * MIB, 5000.0), 0.0, NOW_S)) == [
        ("held", Rung.PREFIX, Rung.CARTRIDGE)
    ]


def test_worth_is_the_time_saved_less_the_price_of_the_bytes() -> None:
    assert worth(subject(uses=2.0), Rung.PREFIX, 0.5) == pytest.approx(2 * 13.8 - 46)
    shares = {Rung.TEXT: RungCost(0, 1.0, 0, 0.0, 0.5), Rung.LORA: RungCost(0, 0.9, 0, 9.0, 0.9)}
    assert worth(subject(uses=1.0, costs=shares), Rung.LORA, 0.5) == pytest.approx(2.0 - 1.0)


def test_a_rate_follows_use_and_fades() -> None:
    rate = UseRate(at_s=NOW_S)
    for day in range(1, 31):
        rate = rate.counted(10, NOW_S + day * DAY_S)
    assert rate.per_day(NOW_S + 30 * DAY_S) == pytest.approx(11.8, abs=0.1)
    assert rate.per_day(NOW_S + 40 * DAY_S) < 0.5
    assert rate.counted(0, NOW_S).at_s == NOW_S + 30 * DAY_S
