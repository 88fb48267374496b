"""The ladder in simulation: small seasons of it, and what a change does."""

from __future__ import annotations

import random

from loadtests.modules.ladder.__main__ import BUDGET, bars_of, season
from loadtests.modules.ladder.arms import REACTS_S, AllText, Ladder
from loadtests.modules.ladder.costs import costs_of
from loadtests.modules.ladder.traffic import DAY_S, Change, Document, Question, documents, events
from memserve.domain.ladder import WEIGHTS, Rung

HANDBOOK = Document("handbook", 2400, whole=True)


def test_a_small_season_holds_the_hard_bars() -> None:
    small = season(0, 2, count=40, questions=300)
    bars = {bar.name: bar for bar in bars_of([small])}
    hard = [bar for bar in bars.values() if bar.at_most in (0, 1) and "making for" not in bar.name]
    assert len(hard) == 5
    assert [bar for bar in hard if not bar.holds] == []
    assert small.of[Ladder.name].hot.mean_s < small.of[AllText.name].hot.mean_s
    assert small.ladder.moves


def test_equal_seeds_give_equal_events_and_the_popular_are_asked_most() -> None:
    of = documents(20, random.Random(1))
    first, second = (list(events(of, 2, 100, random.Random(2))) for _ in range(2))
    assert first == second
    assert [each.at_s for each in first] == sorted(each.at_s for each in first)
    ranks = [each.rank for each in first if isinstance(each, Question)]
    assert ranks.count(0) > ranks.count(5) > ranks.count(19)


def asked_until_trained(ladder: Ladder) -> float:
    """Ask again and again. Returns when the document answers from weights."""
    now_s = 0.0
    while True:
        now_s += 20
        if ladder.answer(Question(now_s, 0, 7, 0)).rung in WEIGHTS:
            return now_s
        ladder.tick(now_s)
        assert now_s < 2 * DAY_S


def test_a_changed_fact_is_text_a_moment_later() -> None:
    ladder = Ladder([HANDBOOK], BUDGET)
    now_s = asked_until_trained(ladder)
    ladder.change(Change(now_s, 0, 7))
    at_once = ladder.answer(Question(now_s + REACTS_S / 2, 0, 7, 0))
    assert at_once.rung in WEIGHTS
    assert ladder.stale_between == 1
    after = ladder.answer(Question(now_s + REACTS_S, 0, 7, 0))
    assert (after.rung, after.stale) == (Rung.TEXT, False)
    assert "a fact has changed" in ladder.moves[-1][1].reason
    assert ladder.held() == {0: 0}


def test_a_rung_is_served_once_it_has_been_made() -> None:
    ladder = Ladder([HANDBOOK], BUDGET)
    for minute in range(60):
        ladder.answer(Question(60.0 * minute, 0, 7, 0))
    ladder.tick(3600.0)
    (_, decision), *_ = ladder.moves
    assert decision.to_rung is Rung.PREFIX
    assert ladder.answer(Question(3601.0, 0, 7, 0)).rung is Rung.TEXT
    assert ladder.answer(Question(3700.0, 0, 7, 0)).rung is Rung.PREFIX


def test_files_that_are_kept_are_loaded_and_not_trained_again() -> None:
    trained, kept = (costs_of(2400, whole=True, kept=kept) for kept in (frozenset(), frozenset({Rung.LORA})))
    assert trained[Rung.LORA].make_s > 1000 > 1 > kept[Rung.LORA].make_s
    assert trained[Rung.TEXT] == kept[Rung.TEXT]
