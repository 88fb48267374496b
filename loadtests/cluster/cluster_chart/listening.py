"""What listens in each pod, beside what the chart names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loadtests.cluster.kubelet.objects import Manifest, ports_of, selects
from loadtests.cluster.kubelet.pod import RunningPod


@dataclass(frozen=True)
class Listening:
    """The TCP ports of a pod beyond loopback."""

    pod: str
    named: frozenset[int]
    """Ports of the pod's containers, and of the policies that let others call it."""
    open: frozenset[int]

    @property
    def unnamed(self) -> frozenset[int]:
        return self.open - self.named


def named_ports(pod: RunningPod, policies: Iterable[Manifest]) -> frozenset[int]:
    """The ports that the pod's containers name, and ranges of ports that policies let others call."""
    numbers = {port.number for port in ports_of(pod.pod.spec)}
    for policy in policies:
        if not selects(policy["spec"].get("podSelector") or {}, pod.pod.labels):
            continue
        for rule in policy["spec"].get("ingress") or []:
            for port in rule.get("ports") or []:
                if "endPort" in port:
                    numbers |= set(range(int(port["port"]), int(port["endPort"]) + 1))
    return frozenset(numbers)


def listening(pod: RunningPod, policies: Iterable[Manifest]) -> Listening:
    """As `ss` sees it in the pod's network namespace."""
    beyond = {port for _, port in pod.host.listening_beyond_loopback()}
    return Listening(pod.pod.name, named_ports(pod, policies), frozenset(beyond))
