"""Replacements of a workload's pods under load."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.cluster.cluster_chart.asking import Asking, Request, overlapping
from loadtests.cluster.kubelet.cluster import Cluster
from loadtests.cluster.kubelet.objects import Manifest
from loadtests.cluster.kubelet.pod import PodRecord, said

SETTLE_S = 3.0
"""How long requests go on after a replacement before it counts as over."""
LOOK_S = 0.1


@dataclass(frozen=True)
class RollOut:
    """What a replacement has done."""

    name: str
    took_s: float
    requests: list[Request]
    """All that ran at any time of it."""
    old: list[PodRecord]
    new: list[PodRecord]

    @property
    def failed(self) -> list[Request]:
        return [request for request in self.requests if request.failure]

    @property
    def drains_s(self) -> list[float]:
        """From the beginning of each old pod's end to the end of its last process."""
        return [record.ended_s - record.deleted_s for record in self.old]

    @property
    def ready_after_s(self) -> list[float]:
        return [record.ready_s - record.created_s for record in self.new]

    @property
    def ended_badly(self) -> list[str]:
        """Old pods that were killed at the end of their grace, or whose processes did not end with 0."""
        return [
            f"{record.name}: {'killed, ' if record.killed else ''}{', '.join(map(said, record.statuses))}"
            for record in self.old
            if record.killed or set(record.statuses) != {0}
        ]


def roll_out(
    cluster: Cluster, asking: Asking, manifests: Sequence[Manifest], owners: Sequence[str], timeout_s: float
) -> RollOut:
    """Apply the manifests, and wait until each pod of the workloads is a new one.

    owners: `Kind/name`; the first gives the roll-out its name. Raises TimeoutError.
    """
    old = [pod.record for owner in owners for pod in cluster.pods(owner)]
    from_s = time.monotonic()
    cluster.apply(manifests)
    cluster.wait_until_rolled_out(timeout_s, owners)
    took_s = time.monotonic() - from_s
    time.sleep(SETTLE_S)
    requests = overlapping(asking.requests(), from_s, time.monotonic())
    new = [pod.record for owner in owners for pod in cluster.pods(owner)]
    return RollOut(owners[0].rpartition("/")[2], took_s, requests, old, new)


@dataclass(frozen=True)
class Stuck:
    """A roll-out whose new pods do not become ready."""

    watched_s: float
    fewest_ready: int
    """Pods of the workload that were ready, at the worst moment."""
    new_ready: int
    """New pods that became ready: none should."""
    fault: str
    """What the new pod's record says."""
    requests: list[Request]

    @property
    def failed(self) -> list[Request]:
        return [request for request in self.requests if request.failure]


def stuck_roll_out(
    cluster: Cluster, asking: Asking, manifests: Sequence[Manifest], owner: str, watch_s: float
) -> Stuck:
    """Apply manifests whose pods cannot start, and watch. The roll-out is under way afterwards."""
    old = {pod.pod.name for pod in cluster.pods(owner)}
    from_s = time.monotonic()
    cluster.apply(manifests)
    fewest, new_ready = len(old), 0
    faults = ["not ready"]
    while time.monotonic() - from_s < watch_s:
        pods = cluster.pods(owner)
        fewest = min(fewest, sum(pod.ready and not pod.terminating for pod in pods))
        new = [pod for pod in pods if pod.pod.name not in old]
        new_ready = max(new_ready, sum(pod.ready for pod in new))
        ends = [pod.record.statuses for pod in new if pod.record.statuses]
        faults = [f"ended {len(statuses)} times, with {said(statuses[-1])}" for statuses in ends] or faults
        time.sleep(LOOK_S)
    requests = overlapping(asking.requests(), from_s, time.monotonic())
    return Stuck(watch_s, fewest, new_ready, ", ".join(faults), requests)
