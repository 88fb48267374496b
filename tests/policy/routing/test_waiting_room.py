"""The queue in front of an engine."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.routing.waiting_room import (
    FORGOTTEN_TOKENS,
    LATELY_S,
    LEAST_MARGIN,
    QUANTUM_TOKENS,
    Waiting,
    WaitingRoom,
)
from memserve.policy.sharing.fading import Fading

Item = Waiting[str]


def item(
    name: str,
    deadline_s: float,
    own_s: float = 1.0,
    *,
    band: int = 1,
    tenant: str = "t",
    tokens: int = 1000,
    mark: int = 0,
) -> Item:
    return Waiting(name, tenant, band, deadline_s, own_s, tokens, arrived_s=0.0, mark=mark)


def names(items: list[Item]) -> list[str]:
    return [each.what for each in items]


def emptied(room: WaitingRoom[str]) -> list[str]:
    """All that wait, in the order in which they go; the engine takes no time."""
    order = []
    while (taken := room.take(0.0, 0.0, lambda each: True))[0] is not None:
        assert not taken[1]
        order.append(taken[0].what)
    return order


def test_the_earliest_deadline_goes_first_within_a_band() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    for each in (
        item("late", 90),
        item("soon", 50),
        item("first band", 99, band=0),
        item("last band", 60, band=2),
    ):
        assert not room.offer(each, 0.0, 0.0)
    assert emptied(room) == ["first band", "soon", "late", "last band"]


def test_a_request_that_cannot_be_in_time_is_refused_at_once() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    assert names(room.offer(item("hopeless", 2.0, own_s=3.0), 0.0, 0.0)) == ["hopeless"]
    assert names(room.offer(item("engine busy", 2.0), 0.0, 5.0)) == ["engine busy"]
    assert len(room) == 0


def test_the_dearest_of_those_before_a_late_one_is_refused() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    assert not room.offer(item("dear", 6.0, own_s=5.0), 0.0, 0.0)
    assert names(room.offer(item("cheap", 6.0, own_s=2.0), 0.0, 0.0)) == ["dear"]
    assert emptied(room) == ["cheap"]


def test_a_lower_band_is_refused_before_a_higher_one_however_cheap_it_is() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    assert not room.offer(item("low", 9.0, own_s=0.5, band=2), 0.0, 0.0)
    assert not room.offer(item("low too", 9.0, own_s=0.5, band=2), 0.0, 0.0)
    assert names(room.offer(item("high", 9.0, own_s=8.6, band=0), 0.0, 0.0)) == ["low too"]


def test_a_request_that_has_become_late_is_refused_when_its_turn_comes() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    room.offer(item("a", 5.0), 0.0, 0.0)
    room.offer(item("b", 9.0), 0.0, 0.0)
    taken, late = room.take(6.0, 0.0, lambda each: True)
    assert taken is not None
    assert (taken.what, names(late)) == ("b", ["a"])


def test_a_request_that_the_engine_cannot_begin_with_is_passed_over() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    room.offer(item("no slot", 5.0), 0.0, 0.0)
    room.offer(item("ready", 9.0), 0.0, 0.0)
    taken, _ = room.take(0.0, 0.0, lambda each: each.what == "ready")
    assert taken is not None
    assert taken.what == "ready"
    assert emptied(room) == ["no slot"]


def test_the_margin_grows_as_requests_wait_longer() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    assert room.margin == LEAST_MARGIN
    for number in range(200):
        each = Waiting(
            str(number), "t", 1, deadline_s=number + 2.0, own_s=0.1, tokens=1, arrived_s=float(number)
        )
        room.offer(each, float(number), 0.0)
        room.take(number + 1.5, 0.0, lambda each: True)
    assert 1.0 < room.margin <= 1.1 + 1e-9


def test_a_tenant_that_had_more_than_its_share_goes_after_the_others() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    for number in range(3):
        room.offer(item(f"flood {number}", 100, tenant="flood", tokens=QUANTUM_TOKENS), 0.0, 0.0)
    room.take(0.0, 0.0, lambda each: True)
    room.offer(item("quiet", 200, tenant="quiet"), 0.0, 0.0)
    assert emptied(room) == ["quiet", "flood 1", "flood 2"]


def test_within_its_quantum_a_tenant_goes_by_its_deadlines() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    room.offer(item("soon", 50, tenant="a", tokens=QUANTUM_TOKENS), 0.0, 0.0)
    room.offer(item("later", 200, tenant="b", tokens=10), 0.0, 0.0)
    assert emptied(room) == ["soon", "later"]


def test_the_flood_is_refused_before_the_quiet_tenant() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    for number in range(40):
        room.offer(item(f"flood {number}", 12.0, tenant="flood", tokens=QUANTUM_TOKENS), 0.0, 0.0)
        if number in (3, 6):
            room.take(0.0, 0.0, lambda each: True)
    before = len(room)
    refused = room.offer(item("quiet", 12.0, own_s=3.0, tenant="quiet"), 0.0, 0.0)
    assert all(name.startswith("flood") for name in names(refused))
    assert len(room) == before + 1 - len(refused)


def test_a_tenant_alone_is_held_against_nobody() -> None:
    room: WaitingRoom[str] = WaitingRoom(quantum_tokens=10)
    for number in range(20):
        room.offer(item(str(number), 90 - number), 0.0, 0.0)
    assert emptied(room) == [str(number) for number in reversed(range(20))]


def test_what_a_tenant_has_had_fades() -> None:
    had: Fading[str] = Fading(LATELY_S, FORGOTTEN_TOKENS)
    had.count("a", 1000.0, 0.0)
    assert had.sums(0.0) == {"a": 1000.0}
    assert had.sums(LATELY_S)["a"] == pytest.approx(1000.0 / math.e)
    assert had.sums(100 * LATELY_S) == {}


def test_tenants_take_turns() -> None:
    room: WaitingRoom[str] = WaitingRoom(quantum_tokens=100)
    for number in range(4):
        room.offer(item(f"a{number}", 100 + number, tenant="a", tokens=100), 0.0, 0.0)
        room.offer(item(f"b{number}", 200 + number, tenant="b", tokens=100), 0.0, 0.0)
    assert emptied(room) == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


@given(
    st.lists(
        st.tuples(st.floats(0.1, 20), st.floats(0.01, 5), st.integers(0, 2), st.sampled_from("ab")),
        max_size=12,
    ),
    st.floats(0, 3),
)
def test_after_every_offer_nobody_who_waits_is_late(
    offers: list[tuple[float, float, int, str]], engine_s: float
) -> None:
    room: WaitingRoom[str] = WaitingRoom()
    refused: list[str] = []
    for number, (deadline_s, own_s, band, tenant) in enumerate(offers):
        refused += names(
            room.offer(item(str(number), deadline_s, own_s, band=band, tenant=tenant), 0.0, engine_s)
        )
        after_s = engine_s
        for each in room:
            after_s += each.own_s
            assert room.margin * after_s <= each.deadline_s
    assert Counter(refused + [each.what for each in room]) == Counter(str(n) for n in range(len(offers)))


@given(st.lists(st.tuples(st.floats(0.5, 12), st.floats(0.1, 4)), min_size=1, max_size=7))
def test_no_choice_of_requests_serves_more_in_time(jobs: list[tuple[float, float]]) -> None:
    """Against every subset, where all come at the same moment and cost the same band and tenant."""
    room: WaitingRoom[str] = WaitingRoom()
    for number, (deadline_s, own_s) in enumerate(sorted(jobs)):
        room.offer(item(str(number), deadline_s, own_s), 0.0, 0.0)

    def in_time(chosen: tuple[tuple[float, float], ...]) -> bool:
        after_s = 0.0
        for deadline_s, own_s in sorted(chosen):
            after_s += own_s
            if LEAST_MARGIN * after_s > deadline_s:
                return False
        return True

    most = max(
        count
        for count in range(len(jobs) + 1)
        if any(in_time(chosen) for chosen in itertools.combinations(jobs, count))
    )
    assert len(room) == most


def test_a_wish_orders_until_it_cannot_be_met_and_the_deadline_does_after_that() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    room.offer(Waiting("wish", "t", 1, 60.0, 1.0, 10, arrived_s=0.0, due_s=5.0), 0.0, 0.0)
    room.offer(item("deadline", 8.0), 0.0, 0.0)
    assert [each.what for each in room] == ["wish", "deadline"]
    room.refuse_late(4.5, 0.0)
    assert [each.what for each in room] == ["deadline", "wish"]
    assert not room.refuse_late(6.0, 0.0), "nobody is refused for a wish"
    assert names(room.refuse_late(59.9, 0.0)) == ["deadline", "wish"]


def test_what_comes_again_when_it_was_told_to_is_refused_last() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    refused = item("refused", 2.0, own_s=3.0, mark=7)
    assert names(room.offer(refused, 0.0, 0.0)) == ["refused"]
    after_s = room.promise(refused, 0.0, 0.0)
    for number in range(3):
        room.offer(item(f"new {number}", after_s + 6.0, own_s=2.0), after_s, 0.0)
    again = item("again", after_s + 4.0, own_s=3.0, mark=7)
    assert all(name.startswith("new") for name in names(room.offer(again, after_s, 0.0)))
    assert next(iter(room)) is again


def test_a_promise_to_a_low_band_holds_against_new_requests_of_the_next_one_and_not_against_the_highest() -> (
    None
):
    room: WaitingRoom[str] = WaitingRoom()
    refused = item("refused", 2.0, own_s=3.0, band=2, mark=7)
    room.offer(refused, 0.0, 0.0)
    after_s = room.promise(refused, 0.0, 0.0)
    room.offer(item("new", after_s + 4.0, own_s=3.0, band=1), after_s, 0.0)
    again = item("again", after_s + 4.0, own_s=3.0, band=2, mark=7)
    assert names(room.offer(again, after_s, 0.0)) == ["new"]
    assert names(room.offer(item("high", after_s + 4.0, own_s=3.0, band=0), after_s, 0.0)) == ["again"]


def test_a_band_gets_the_share_that_it_was_promised_whatever_waits_above() -> None:
    room: WaitingRoom[str] = WaitingRoom({2: 0.25})
    for number in range(10):
        room.offer(item(f"low {number}", 1e6, band=2), 0.0, 0.0)
        room.offer(item(f"high {number}", 1e6, band=1), 0.0, 0.0)
    order = emptied(room)
    assert sum(name.startswith("low") for name in order[:10]) == 2
    assert order[0] == "high 0"


def test_where_there_are_too_many_the_last_of_the_lowest_band_goes() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    assert room.worst() is None
    for each in (item("high", 90, band=0), item("low", 50, band=2), item("middle", 60)):
        room.offer(each, 0.0, 0.0)
    worst = room.worst()
    assert worst is not None
    assert worst.what == "low"
    room.remove(worst)
    assert emptied(room) == ["high", "middle"]
