"""When containers are probed, and what the answers mean."""

from __future__ import annotations

import pytest

from loadtests.cluster.kubelet.probes import ContainerHealth, ProbeTimes, restart_delay_s


def test_other_probes_wait_until_the_startup_probe_has_succeeded() -> None:
    times = ProbeTimes(period_s=1, failure_threshold=3)
    health = ContainerHealth({"startup": times, "readiness": times, "liveness": times}, started_s=0)
    assert health.due(0) == ["startup"]
    health.observe("startup", False, 0)
    assert health.due(0.5) == [] and health.due(1) == ["startup"]
    health.observe("startup", True, 1)
    assert health.started and not health.ready
    assert set(health.due(1)) == {"readiness", "liveness"}
    health.observe("readiness", True, 1)
    assert health.ready and not health.must_restart


def test_a_container_is_restarted_after_as_many_failures_in_a_row_as_its_probe_says() -> None:
    health = ContainerHealth({"liveness": ProbeTimes(failure_threshold=2)}, started_s=0)
    for ok in (False, True, False):
        health.observe("liveness", ok, 0)
    assert not health.must_restart
    health.observe("liveness", False, 0)
    assert health.must_restart


def test_a_container_whose_startup_probe_fails_too_often_is_restarted() -> None:
    health = ContainerHealth({"startup": ProbeTimes(failure_threshold=2)}, started_s=0)
    health.observe("startup", False, 0)
    health.observe("startup", False, 10)
    assert health.must_restart and not health.started


def test_readiness_turns_by_both_thresholds() -> None:
    health = ContainerHealth({"readiness": ProbeTimes(failure_threshold=2, success_threshold=2)}, started_s=0)
    seen = []
    for ok in (True, True, False, True, False, False, True, True):
        health.observe("readiness", ok, 0)
        seen.append(health.ready)
    assert seen == [False, True, True, True, True, False, False, True]


def test_the_first_probe_waits_for_its_initial_delay() -> None:
    health = ContainerHealth({"readiness": ProbeTimes(initial_delay_s=5, period_s=2)}, started_s=100)
    assert health.due(104) == [] and health.due(105) == ["readiness"] and health.due(106) == []


def test_a_container_without_probes_is_ready() -> None:
    assert ContainerHealth({}, started_s=0).ready


@pytest.mark.parametrize(("restarts", "delay_s"), [(0, 0), (1, 10), (2, 20), (3, 40), (9, 300), (10**6, 300)])
def test_restarts_take_longer_each_time(restarts: int, delay_s: float) -> None:
    assert restart_delay_s(restarts) == delay_s
