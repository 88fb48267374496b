"""NetworkPolicies: the rules for nft that a pod's own network namespace gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from loadtests.cluster.kubelet.objects import Manifest, Objects, port_number, selects
from loadtests.cluster.kubelet.services import PlacedPod

Direction = Literal["ingress", "egress"]


def policies_for(pod: PlacedPod, objects: Objects, direction: Direction) -> list[Manifest]:
    """The NetworkPolicies that select the pod and speak of the direction."""
    found = []
    for policy in objects.of("NetworkPolicy"):
        spec = policy["spec"]
        types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
        if direction.capitalize() in types and selects(spec.get("podSelector") or {}, pod.pod.labels):
            found.append(policy)
    return found


def policy_rules(
    pod: PlacedPod,
    pods: Sequence[PlacedPod],
    objects: Objects,
    node_address: str,
    namespace_labels: Mapping[str, str] | None = None,
) -> str:
    """The rules of one pod. A pod that no policy selects takes and makes every connection.

    pods: all of the namespace. node_address: the kubelet's, whose probes no policy keeps out.
    namespace_labels: of the pods' namespace, beside the one with its name.
    """
    labels = {"kubernetes.io/metadata.name": objects.namespace, **(namespace_labels or {})}
    chains = []
    for direction, hook in (("ingress", "input"), ("egress", "output")):
        side: Direction = "ingress" if direction == "ingress" else "egress"
        policies = policies_for(pod, objects, side)
        rules = ["ct state established,related accept", f"{'iif' if side == 'ingress' else 'oif'} lo accept"]
        if side == "ingress":
            rules.append(f"ip saddr {node_address} accept")
        for policy in policies:
            for allowed in policy["spec"].get(side) or []:
                rules += allowing(allowed, side, pod, pods, labels)
        verdict = "drop" if policies else "accept"
        body = "\n    ".join(rules)
        chains.append(
            f"  chain {side} {{\n    type filter hook {hook} priority 10; policy {verdict};\n    {body}\n  }}"
        )
    body = "\n".join(chains)
    return f"table inet policies\ndelete table inet policies\ntable inet policies {{\n{body}\n}}\n"


def allowing(
    rule: Manifest,
    direction: Direction,
    pod: PlacedPod,
    pods: Sequence[PlacedPod],
    namespace_labels: Mapping[str, str],
) -> list[str]:
    """What one entry of `ingress` or `egress` allows."""
    peers = rule.get("from" if direction == "ingress" else "to")
    end = "saddr" if direction == "ingress" else "daddr"
    lines = []
    if not peers:
        # A port's name means the target's: only this pod's is known where the peer may be anybody.
        return [f"{match}accept" for match in _ports(rule, pod)]
    for peer in peers:
        if block := peer.get("ipBlock"):
            excepted = block.get("except") or []
            without = f"ip {end} != {{ {', '.join(excepted)} }} " if excepted else ""
            lines += [f"ip {end} {block['cidr']} {without}{match}accept" for match in _ports(rule, pod)]
            continue
        chosen = list(_peers(peer, pods, namespace_labels))
        for placed in chosen:
            target = pod if direction == "ingress" else placed
            lines += [f"ip {end} {placed.address} {match}accept" for match in _ports(rule, target)]
    return lines


def _peers(
    peer: Manifest, pods: Iterable[PlacedPod], namespace_labels: Mapping[str, str]
) -> Iterable[PlacedPod]:
    """The pods of this namespace that a peer means. Other namespaces have none here."""
    if "namespaceSelector" in peer and not selects(peer["namespaceSelector"] or {}, namespace_labels):
        return []
    selector = peer.get("podSelector") or {}
    return [placed for placed in pods if selects(selector, placed.pod.labels)]


def _ports(rule: Manifest, target: PlacedPod) -> list[str]:
    """Matches of the ports, each with a blank behind; one empty match where every port is meant."""
    if not rule.get("ports"):
        return [""]
    matches = []
    for port in rule["ports"]:
        protocol = port.get("protocol", "TCP").lower()
        if port.get("port") is None:
            matches.append(f"meta l4proto {protocol} ")
            continue
        number = port_number(port["port"], target.pod.spec)
        if number is not None:
            last = f"-{port['endPort']}" if port.get("endPort") else ""
            matches.append(f"{protocol} dport {number}{last} ")
    return matches
