"""When a refused request may come again, and what it finds then."""

from __future__ import annotations

import pytest

from memserve.policy.routing.promises import (
    KEPT_S,
    LEAST_LEFT,
    LONGEST_S,
    PACE,
    PROMISES_MAX,
    PromisedWorkers,
    Promises,
    mark_of,
)


def make(
    promises: Promises,
    mark: int = 1,
    *,
    tenant: str = "t",
    band: int = 1,
    left: float = 1.0,
    now_s: float = 0.0,
) -> float:
    return promises.make(tenant, band, mark, own_s=1.0, now_s=now_s, ahead_s=2.0, left=left)


def test_promises_of_a_tenant_and_band_follow_one_another() -> None:
    promises = Promises()
    assert [make(promises) for _ in range(3)] == pytest.approx([2.0, 2.0 + PACE, 2.0 + 2 * PACE])
    assert make(promises, band=2) == 2.0
    assert make(promises, tenant="other") == 2.0


def test_who_is_left_little_gets_promises_further_apart() -> None:
    promises = Promises()
    make(promises, left=0.5)
    assert make(promises, left=0.0) == pytest.approx(2.0 + PACE / 0.5)
    assert make(promises) == pytest.approx(2.0 + PACE / 0.5 + PACE / LEAST_LEFT)
    for _ in range(1000):
        longest_s = make(promises, left=0.0)
    assert longest_s == LONGEST_S


def test_a_promise_is_kept_once_for_its_request_when_it_is_due() -> None:
    promises = Promises()
    due_s = make(promises, mark=7)
    assert not promises.redeem("t", 1, 7, due_s - 1.0), "too early"
    assert not promises.redeem("other", 1, 7, due_s)
    assert not promises.redeem("t", 2, 7, due_s)
    assert not promises.redeem("t", 1, 8, due_s), "another request"
    assert promises.redeem("t", 1, 7, due_s)
    assert not promises.redeem("t", 1, 7, due_s), "used up"


def test_equal_requests_have_a_promise_each() -> None:
    promises = Promises()
    first_s, second_s = make(promises), make(promises)
    assert promises.redeem("t", 1, 1, first_s)
    assert not promises.redeem("t", 1, 1, first_s)
    assert promises.redeem("t", 1, 1, second_s)


def test_a_promise_is_over_after_a_while() -> None:
    promises = Promises()
    due_s = make(promises)
    assert not promises.redeem("t", 1, 1, due_s + KEPT_S + 1)


def test_promises_do_not_grow_without_a_bound() -> None:
    promises = Promises()
    for tenant in range(10_000):
        make(promises, tenant=f"t{tenant}", now_s=tenant * 1.0)
    assert len(promises._due) < 300
    assert len(promises._until_s) < 300
    for mark in range(2 * PROMISES_MAX):
        make(promises, mark, tenant="one", now_s=10_000.0)
    assert len(promises._due) < PROMISES_MAX + 300


def test_a_gateway_knows_who_has_promised() -> None:
    workers = PromisedWorkers()
    workers.told("t", 1, 7, "later", due_s=9.0, now_s=0.0)
    workers.told("t", 1, 8, "sooner", due_s=5.0, now_s=0.0)
    assert workers.take("t", 1, 8, 4.0) == ""
    assert workers.take("other", 1, 8, 5.0) == ""
    assert workers.take("t", 1, 8, 5.0) == "sooner"
    assert workers.take("t", 1, 8, 5.0) == ""
    assert workers.take("t", 1, 7, 9.0) == "later"
    for mark in range(2 * PROMISES_MAX):
        workers.told("t", 1, mark, "w", due_s=20.0 + mark, now_s=10.0)
    assert workers.take("t", 1, 0, 20.0) == "w", "the soonest are kept"
    assert workers.take("t", 1, 2 * PROMISES_MAX - 1, 1e6) == ""


def test_a_request_is_known_by_its_prompt() -> None:
    prompt = list(range(2000))
    assert mark_of(prompt) == mark_of(tuple(prompt))
    assert mark_of(prompt) != mark_of(prompt[:-1])
    assert mark_of(prompt) != mark_of([*prompt[:-1], 5])
