"""Strength: what fades, what grows, and how far it changes an order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.domain.memories import MemoryKind
from memserve.policy.recall.strength import (
    STRENGTH_LEAST,
    STRENGTH_MOST,
    StrengthPolicy,
    Usage,
    effective_strength,
)

DAY_S = 86_400.0
KINDS = st.sampled_from(MemoryKind.known())
WRITTEN = st.floats(0, 10)
TIMES = st.floats(0, 1e9)
USAGES = st.integers(0, 10_000).flatmap(
    lambda outcomes: st.builds(
        Usage,
        age_s=TIMES,
        uses=st.integers(0, 10**6),
        last_used_ago_s=st.none() | TIMES,
        rewards=st.floats(0, outcomes),
        outcomes=st.just(outcomes),
    )
)


def test_a_new_memory_is_as_strong_as_its_writer_says() -> None:
    assert effective_strength(2.0, MemoryKind.FACT, Usage(0.0)) == pytest.approx(2.0)


def test_episodes_fade_first_then_facts_then_procedures_and_passages_never() -> None:
    kinds = [MemoryKind.EPISODE, MemoryKind.FACT, MemoryKind.PROCEDURE, MemoryKind.PASSAGE]
    strengths = [effective_strength(1.0, kind, Usage(60 * DAY_S)) for kind in kinds]
    assert strengths == sorted(set(strengths))
    assert strengths[-1] == 1.0
    assert effective_strength(1.0, MemoryKind.EPISODE, Usage(14 * DAY_S)) == pytest.approx(0.75)


@given(WRITTEN, KINDS, USAGES, st.floats(0, 1e9))
def test_time_without_use_never_strengthens(
    written: float, kind: MemoryKind, usage: Usage, more_s: float
) -> None:
    later = replace(
        usage,
        age_s=usage.age_s + more_s,
        last_used_ago_s=None if usage.last_used_ago_s is None else usage.last_used_ago_s + more_s,
    )
    assert effective_strength(written, kind, later) <= effective_strength(written, kind, usage) + 1e-9


@given(WRITTEN, KINDS, USAGES, st.integers(1, 1000))
def test_use_never_weakens(written: float, kind: MemoryKind, usage: Usage, more: int) -> None:
    used = replace(usage, uses=usage.uses + more, last_used_ago_s=0.0)
    assert effective_strength(written, kind, used) >= effective_strength(written, kind, usage) - 1e-9


@given(WRITTEN, KINDS, USAGES, st.floats(0, 1))
def test_a_better_reward_never_weakens(written: float, kind: MemoryKind, usage: Usage, reward: float) -> None:
    worse = replace(usage, outcomes=usage.outcomes + 1)
    better = replace(worse, rewards=usage.rewards + reward)
    won = replace(worse, rewards=usage.rewards + 1)
    of_usage = effective_strength(written, kind, usage)
    assert effective_strength(written, kind, worse) <= of_usage + 1e-9
    assert effective_strength(written, kind, better) >= effective_strength(written, kind, worse) - 1e-9
    assert effective_strength(written, kind, won) >= of_usage - 1e-9


@given(st.floats(-1e6, 1e6), KINDS, USAGES)
def test_strength_is_bounded(written: float, kind: MemoryKind, usage: Usage) -> None:
    assert STRENGTH_LEAST <= effective_strength(written, kind, usage) <= STRENGTH_MOST


@given(WRITTEN, KINDS, USAGES)
def test_off_leaves_the_writers_strength(written: float, kind: MemoryKind, usage: Usage) -> None:
    off = StrengthPolicy.off()
    strength = effective_strength(written, kind, usage, off)
    assert strength == pytest.approx(max(written, STRENGTH_LEAST))


def test_clocks_that_differ_and_rewards_out_of_range_do_no_harm() -> None:
    assert effective_strength(1.0, MemoryKind.FACT, Usage(-50.0, uses=-1, outcomes=-3)) == 1.0
    assert effective_strength(
        1.0, MemoryKind.FACT, Usage(0.0, rewards=9.0, outcomes=1)
    ) == effective_strength(1.0, MemoryKind.FACT, Usage(0.0, rewards=1.0, outcomes=1))
