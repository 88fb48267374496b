"""Which pods of a workload are made and deleted next, as Kubernetes' controllers decide it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from loadtests.cluster.kubelet.objects import Manifest


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod of a workload."""

    name: str
    revision: str
    ready: bool
    terminating: bool = False
    ordinal: int = 0
    """In a StatefulSet."""
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now."""

    create: int = 0
    """Pods of a Deployment to make, of the new revision."""
    create_ordinals: tuple[int, ...] = ()
    """Pods of a StatefulSet to make."""
    delete: tuple[str, ...] = ()
    """Names of pods to delete."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a Deployment wants."""

    replicas: int
    max_surge: int
    max_unavailable: int
    recreate: bool = False
    """Every old pod ends before a new one is made."""

    @classmethod
    def of(cls, manifest: Manifest) -> Deployment:
        """A Deployment without `replicas` has one, as in Kubernetes; so it is before an autoscaler comes."""
        spec = manifest["spec"]
        replicas = int(spec.get("replicas", 1))
        strategy = spec.get("strategy") or {}
        if strategy.get("type") == "Recreate":
            return cls(replicas, 0, replicas, recreate=True)
        rolling = strategy.get("rollingUpdate") or {}
        surge = _share(rolling.get("maxSurge", "25%"), replicas, up=True)
        unavailable = _share(rolling.get("maxUnavailable", "25%"), replicas, up=False)
        # Kubernetes' own rule: both cannot be 0.
        return cls(replicas, surge, unavailable if surge or unavailable else 1)


def _share(value: int | str, replicas: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    part = int(value.removesuffix("%")) / 100 * replicas
    return math.ceil(part) if up else math.floor(part)


def deployment_step(wanted: Deployment, revision: str, pods: Collection[PodState]) -> Step:
    """revision: of the template as it is now. pods: all of the Deployment, terminating ones too."""
    alive = [pod for pod in pods if not pod.terminating]
    new = [pod for pod in alive if pod.revision == revision]
    old = [pod for pod in alive if pod.revision != revision]
    room = wanted.replicas + wanted.max_surge - len(alive)
    create = max(0, min(wanted.replicas - len(new), room))
    if wanted.recreate and any(pod.revision != revision for pod in pods):
        create = 0
    least = wanted.replicas - wanted.max_unavailable
    # As many old pods may go as leave enough that are ready. Those that are not ready go first.
    new_unready = sum(not pod.ready for pod in new)
    may_go = max(0, len(alive) - least - new_unready)
    unready = [pod for pod in old if not pod.ready][:may_go]
    spare = max(0, sum(pod.ready for pod in alive) - least)
    going = [*unready, *[pod for pod in old if pod.ready][: min(spare, may_go - len(unready))]]
    if not old and len(new) > wanted.replicas:
        going = sorted(new, key=lambda pod: (pod.ready, pod.age_s))[: len(new) - wanted.replicas]
    return Step(create=create, delete=tuple(pod.name for pod in going))


@dataclass(frozen=True, slots=True)
class StatefulSet:
    """What a StatefulSet wants."""

    replicas: int
    in_order: bool
    """Pods are made one after the other. In any case they are replaced one after the other."""
    partition: int = 0
    """Pods of lower ordinals stay as they are."""
    by_hand: bool = False
    """A change of the template replaces no pod (OnDelete)."""

    @classmethod
    def of(cls, manifest: Manifest) -> StatefulSet:
        spec = manifest["spec"]
        strategy = spec.get("updateStrategy") or {}
        return cls(
            int(spec.get("replicas", 1)),
            spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady",
            int((strategy.get("rollingUpdate") or {}).get("partition", 0)),
            strategy.get("type") == "OnDelete",
        )


def stateful_step(wanted: StatefulSet, revision: str, pods: Collection[PodState]) -> Step:
    """revision: of the template as it is now. pods: all of the StatefulSet, terminating ones too."""
    by_ordinal = {pod.ordinal: pod for pod in pods}
    missing = []
    for ordinal in range(wanted.replicas):
        pod = by_ordinal.get(ordinal)
        if pod is None:
            missing.append(ordinal)
        if wanted.in_order and (pod is None or not pod.ready or pod.terminating):
            # The next one waits for this one.
            return Step(create_ordinals=tuple(missing))
    if missing:
        return Step(create_ordinals=tuple(missing))
    surplus = sorted(ordinal for ordinal in by_ordinal if ordinal >= wanted.replicas)
    if surplus:
        last = by_ordinal[surplus[-1]]
        return Step(delete=() if last.terminating else (last.name,))
    if wanted.by_hand:
        return Step()
    for ordinal in range(wanted.replicas - 1, wanted.partition - 1, -1):
        pod = by_ordinal[ordinal]
        if pod.revision != revision and not pod.terminating:
            return Step(delete=(pod.name,))
        if not pod.ready or pod.terminating:
            return Step()
    return Step()
