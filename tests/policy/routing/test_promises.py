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
)


def make(
    promises: Promises, tenant: str = "t", own_s: float = 1.0, band: int = 1, left: float = 1.0
) -> float:
    return promises.make(tenant, band, own_s, now_s=0.0, ahead_s=2.0, left=left)


def test_promises_follow_one_another() -> None:
    promises = Promises()
    assert [make(promises) for _ in range(3)] == pytest.approx([2.0, 2.0 + PACE, 2.0 + 2 * PACE])
    assert make(promises, band=2) == 2.0, "a band has its own"


def test_a_band_that_is_left_little_gets_its_promises_further_apart() -> None:
    promises = Promises()
    make(promises, left=0.5)
    assert make(promises, left=0.0) == pytest.approx(2.0 + PACE / 0.5)
    assert make(promises) == pytest.approx(2.0 + PACE / 0.5 + PACE / LEAST_LEFT)
    for _ in range(1000):
        longest_s = make(promises, left=0.0)
    assert longest_s == LONGEST_S


def test_a_promise_is_kept_once_for_its_tenant_and_band_when_it_is_due() -> None:
    promises = Promises()
    due_s = make(promises)
    assert not promises.redeem("t", 1, 1.0, due_s - 1.0), "too early"
    assert not promises.redeem("other", 1, 1.0, due_s)
    assert not promises.redeem("t", 2, 1.0, due_s)
    assert not promises.redeem("t", 1, 3.0, due_s), "a request of another size"
    assert promises.redeem("t", 1, 1.0, due_s)
    assert not promises.redeem("t", 1, 1.0, due_s), "used up"


def test_a_promise_is_over_after_a_while() -> None:
    promises = Promises()
    due_s = make(promises)
    assert not promises.redeem("t", 1, 1.0, due_s + KEPT_S + 1)


def test_promises_do_not_grow_without_a_bound() -> None:
    promises = Promises()
    for tenant in range(10_000):
        promises.make(f"t{tenant}", 1, 1e-3, now_s=tenant * 1.0, ahead_s=0.0, left=1.0)
    assert len(promises._of) < 200
    for _ in range(2 * PROMISES_MAX):
        promises.make("one", 1, 1e-3, now_s=10_000.0, ahead_s=0.0, left=1.0)
    assert len(promises._of["one", 1]) == PROMISES_MAX


def test_a_gateway_knows_who_has_promised() -> None:
    workers = PromisedWorkers()
    workers.told("t", 1, "later", 9.0)
    workers.told("t", 1, "sooner", 5.0)
    assert workers.take("t", 1, 4.0) == ""
    assert workers.take("other", 1, 5.0) == ""
    assert workers.take("t", 1, 5.0) == "sooner"
    assert workers.take("t", 1, 5.0) == ""
    assert workers.take("t", 1, 9.0) == "later"
    workers.told("t", 1, "over", 10.0)
    assert workers.take("t", 1, 10.0 + KEPT_S + 1) == ""
    assert not workers._of


def test_what_a_gateway_knows_has_a_bound() -> None:
    workers = PromisedWorkers()
    for number in range(2 * PROMISES_MAX):
        workers.told("t", 1, str(number), float(number))
    assert workers.take("t", 1, 0.0) == "0", "the soonest are kept"
    assert len(workers._of["t", 1]) == PROMISES_MAX - 1
    for tenant in range(1000):
        workers.told(f"t{tenant}", 1, "w", 20_000.0 + tenant)
    assert len(workers._of) < 200
