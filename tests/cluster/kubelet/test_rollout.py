"""Which pods are made and deleted next."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from loadtests.cluster.kubelet.rollout import (
    Deployment,
    PodState,
    StatefulSet,
    Step,
    deployment_step,
    stateful_step,
)


def pods(revision: str, ready: int, unready: int = 0) -> list[PodState]:
    return [PodState(f"{revision}{number}", revision, number < ready) for number in range(ready + unready)]


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        ({}, Deployment(3, 1, 0)),
        ({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "50%"}}, Deployment(3, 0, 1)),
        ({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}, Deployment(3, 0, 1)),
        ({"type": "Recreate"}, Deployment(3, 0, 3, recreate=True)),
    ],
)
def test_shares_are_rounded_as_kubernetes_rounds_them(
    strategy: dict[str, object], wanted: Deployment
) -> None:
    assert Deployment.of({"spec": {"replicas": 3, "strategy": strategy}}) == wanted


@pytest.mark.parametrize(
    ("now", "create", "delete"),
    [
        ([], 2, 0),
        (pods("a", 2), 1, 0),  # one more than wanted, and none goes before it is ready
        (pods("a", 2) + pods("b", 0, 1), 0, 0),
        (pods("a", 2) + pods("b", 1), 0, 1),
        (pods("a", 1) + pods("b", 1), 1, 0),
        (pods("a", 1) + pods("b", 2), 0, 1),
        (pods("b", 2), 0, 0),
        (pods("a", 1, 1), 1, 0),
        (pods("b", 3), 0, 1),
    ],
)
def test_a_deployment_never_has_fewer_ready_than_it_may(
    now: list[PodState], create: int, delete: int
) -> None:
    step = deployment_step(Deployment(2, max_surge=1, max_unavailable=0), "b", now)
    assert (step.create, len(step.delete)) == (create, delete)
    assert all(name.startswith("a") for name in step.delete) or len(now) > 2


def test_a_roll_out_ends_whatever_its_strategy() -> None:
    for replicas, surge, unavailable in itertools.product((1, 2, 5), (0, 1, 3), (0, 1, 2)):
        if surge + unavailable == 0:
            continue
        wanted, now = Deployment(replicas, surge, unavailable), pods("a", replicas)
        names = itertools.count()
        for _ in range(100):
            step = deployment_step(wanted, "b", now)
            now = [replace(pod, ready=True) for pod in now if pod.name not in step.delete]
            now += [PodState(f"b-{next(names)}", "b", False) for _ in range(step.create)]
            assert sum(pod.ready for pod in now) >= replicas - unavailable
            assert len(now) <= replicas + surge
        assert sorted(pod.revision for pod in now) == ["b"] * replicas


def test_recreate_waits_for_the_last_old_pod() -> None:
    ending = [replace(pod, terminating=True) for pod in pods("a", 1)]
    wanted = Deployment(1, 0, 1, recreate=True)
    assert deployment_step(wanted, "b", ending).create == 0
    assert deployment_step(wanted, "b", []).create == 1


def numbered(*revisions: str, ready: bool = True) -> list[PodState]:
    return [PodState(f"s-{place}", name, ready, ordinal=place) for place, name in enumerate(revisions)]


def test_a_stateful_set_makes_its_pods_in_order_or_at_once() -> None:
    in_order, at_once = StatefulSet(3, in_order=True), StatefulSet(3, in_order=False)
    assert stateful_step(in_order, "a", []) == Step(create_ordinals=(0,))
    assert stateful_step(in_order, "a", numbered("a", ready=False)) == Step()
    assert stateful_step(in_order, "a", numbered("a")) == Step(create_ordinals=(1,))
    assert stateful_step(at_once, "a", numbered("a", ready=False)) == Step(create_ordinals=(1, 2))


def test_a_stateful_set_replaces_one_pod_at_a_time_and_the_last_first() -> None:
    wanted = StatefulSet(3, in_order=False)
    assert stateful_step(wanted, "b", numbered("a", "a", "a")) == Step(delete=("s-2",))
    going = numbered("a", "a", "a")
    going[2] = replace(going[2], terminating=True)
    assert stateful_step(wanted, "b", going) == Step()
    coming = numbered("a", "a", "b")
    coming[2] = replace(coming[2], ready=False)
    assert stateful_step(wanted, "b", coming) == Step()
    assert stateful_step(wanted, "b", numbered("a", "a", "b")) == Step(delete=("s-1",))
    assert stateful_step(replace(wanted, partition=2), "b", numbered("a", "a", "b")) == Step()
    assert stateful_step(replace(wanted, by_hand=True), "b", numbered("a", "a", "a")) == Step()
    assert stateful_step(StatefulSet(1, in_order=True), "a", numbered("a", "a")) == Step(delete=("s-1",))
