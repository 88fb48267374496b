"""Who may reach whom, by the rendered NetworkPolicies, as Kubernetes reads them.

A connection is taken when the caller's policies let it out and the called pod's let it in. A pod that no
policy selects takes everything.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from tests.helm.charts import Manifest, of_kind


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod, or an address outside of the cluster."""

    labels: tuple[tuple[str, str], ...] = ()
    namespace: str = "prod"
    address: str = "10.244.9.9"
    is_pod: bool = True


def pod(namespace: str = "prod", /, **labels: str) -> Peer:
    return Peer(tuple(labels.items()), namespace)


def part(component: str, release: str = "memserve") -> Peer:
    """A pod of the release."""
    labels = {
        "app.kubernetes.io/name": "memserve",
        "app.kubernetes.io/instance": release,
        "app.kubernetes.io/component": component,
    }
    if component in ("worker", "ray-head"):
        labels["memserve/ray"] = "true"
    return Peer(tuple(labels.items()))


def outside(address: str) -> Peer:
    return Peer(address=address, is_pod=False)


def may(policies: list[Manifest], caller: Peer, called: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the connection is taken."""
    return _allowed(policies, "Egress", caller, called, port, protocol) and _allowed(
        policies, "Ingress", called, caller, port, protocol
    )


def _allowed(
    policies: list[Manifest], way: str, subject: Peer, other: Peer, port: int, protocol: str
) -> bool:
    if not subject.is_pod or subject.namespace != "prod":
        return True
    chosen = [
        each["spec"]
        for each in of_kind(policies, "NetworkPolicy")
        if way in each["spec"]["policyTypes"] and _selects(each["spec"]["podSelector"], subject.labels)
    ]
    if not chosen:
        return True
    return any(
        _peers(rule, way, other) and _ports(rule, port, protocol)
        for spec in chosen
        for rule in spec.get(way.lower()) or ()
    )


def _peers(rule: dict[str, Any], way: str, other: Peer) -> bool:
    peers = rule.get("from" if way == "Ingress" else "to")
    return not peers or any(_is(peer, other) for peer in peers)


def _is(peer: dict[str, Any], other: Peer) -> bool:
    if block := peer.get("ipBlock"):
        address = ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(cidr) for cidr in block.get("except", ())
        )
    if not other.is_pod:
        return False
    namespaces = peer.get("namespaceSelector")
    in_namespace = (
        other.namespace == "prod"
        if namespaces is None
        else _selects(namespaces, (("kubernetes.io/metadata.name", other.namespace),))
    )
    return in_namespace and _selects(peer.get("podSelector", {}), other.labels)


def _ports(rule: dict[str, Any], port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return not ports or any(
        each.get("protocol", "TCP") == protocol and each["port"] <= port <= each.get("endPort", each["port"])
        for each in ports
    )


def _selects(selector: dict[str, Any], labels: tuple[tuple[str, str], ...]) -> bool:
    found = dict(labels)
    return all(found.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        _expression(each, found) for each in selector.get("matchExpressions", ())
    )


def _expression(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    assert expression["operator"] == "In"
    return labels.get(expression["key"]) in expression["values"]


def taken(policies: list[Manifest], caller: Peer, called: Peer) -> set[int]:
    """The ports on which the connection is taken, of all that a policy names and those beside them."""
    return {port for port in named_ports(policies) if may(policies, caller, called, port)}


def named_ports(policies: list[Manifest]) -> set[int]:
    """Every port that a policy names, and one below and above of each range. No rule tells others apart."""
    found = {1, 22, 65535}
    for each in of_kind(policies, "NetworkPolicy"):
        for rule in (*(each["spec"].get("ingress") or ()), *(each["spec"].get("egress") or ())):
            for ports in rule.get("ports", ()):
                found |= set(range(ports["port"] - 1, ports.get("endPort", ports["port"]) + 2))
    return found
