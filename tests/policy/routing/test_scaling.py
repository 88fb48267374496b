"""How many workers there should be."""

from __future__ import annotations

import pytest

from memserve.policy.routing.scaling import TARGET, demand, wanted_workers


def test_what_is_asked_of_a_worker_is_its_time_or_its_seats() -> None:
    assert demand(offered=TARGET, seats=0.1) == 1.0
    assert demand(offered=0.1, seats=TARGET) == 1.0


@pytest.mark.parametrize(
    ("demands", "running", "wanted"),
    [
        ([0.5], 1, 1),
        ([1.1], 1, 2),
        ([2.6], 1, 3),
        ([1.3, 1.3], 2, 3),
        ([0.5, 0.5], 2, 2),
        ([0.3, 0.3], 2, 1),
        ([0.0, 0.0, 0.0], 3, 1),
        ([1.2], 2, 3),
        ([], 2, 2),
        ([5.0], 0, 0),
    ],
)
def test_workers_come_when_more_is_asked_and_go_when_the_others_have_room(
    demands: list[float], running: int, wanted: int
) -> None:
    assert wanted_workers(demands, running) == wanted


@pytest.mark.parametrize("whole", [number / 10 for number in range(1, 60)])
def test_the_number_settles(whole: float) -> None:
    """The same load on as many workers as were wanted wants no other number."""
    running = 1
    for _ in range(10):
        running = wanted_workers([whole / running] * running, running)
    assert wanted_workers([whole / running] * running, running) == running
