"""Which workers of a large fleet are looked at."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.routing.candidates import FEW, few


def test_a_small_fleet_is_looked_at_whole() -> None:
    assert list(few(FEW, {}, [0.0] * FEW, random.random)) == list(range(FEW))


def test_of_a_large_one_the_best_holders_and_the_idlest_are_looked_at() -> None:
    backlog_s = [10.0] * 100
    backlog_s[40] = backlog_s[50] = backlog_s[60] = 1.0
    chosen = few(100, {7: 9, 8: 8, 9: 7, 10: 1}, backlog_s, random.Random(1).random)
    assert {7, 8, 9, 40, 50, 60} <= set(chosen)
    assert len(chosen) <= FEW


@given(st.integers(1, 200), st.dictionaries(st.integers(0, 199), st.integers(1, 99)), st.randoms())
def test_there_are_few_and_none_twice(count: int, leading: dict[int, int], dice: random.Random) -> None:
    held = {number: blocks for number, blocks in leading.items() if number < count}
    chosen = few(count, held, [dice.random() for _ in range(count)], dice.random)
    assert 1 <= len(chosen) <= FEW
    assert len(set(chosen)) == len(chosen)
    assert all(0 <= number < count for number in chosen)
