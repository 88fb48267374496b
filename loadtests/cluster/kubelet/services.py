"""Services: which pods answer for a name or an address, and the rules and names that lead there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtests.cluster.kubelet.objects import Manifest, Objects, Pod, port_number, selects


@dataclass(frozen=True)
class PlacedPod:
    """A pod with an address."""

    pod: Pod
    address: str
    ready: bool
    terminating: bool = False


def is_headless(service: Manifest) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def endpoints_of(service: Manifest, pods: Iterable[PlacedPod]) -> list[PlacedPod]:
    """The pods that a Service leads to: selected, ready and not terminating."""
    selector = service["spec"].get("selector")
    if not selector:
        return []
    anyway = bool(service["spec"].get("publishNotReadyAddresses"))
    return [
        placed
        for placed in pods
        if selects({"matchLabels": selector}, placed.pod.labels)
        and (anyway or (placed.ready and not placed.terminating))
    ]


def service_addresses(objects: Objects, number: int) -> dict[str, str]:
    """An address for each Service that is not headless, by name. number: the second byte of each."""
    names = [service["metadata"]["name"] for service in objects.of("Service") if not is_headless(service)]
    return {name: f"10.{number}.1.{place}" for place, name in enumerate(sorted(names), 1)}


def host_lines(
    objects: Objects,
    addresses: Mapping[str, str],
    endpoints: Mapping[str, Sequence[PlacedPod]],
) -> list[str]:
    """Lines of /etc/hosts in the place of the cluster's DNS.

    addresses: of the Services that are not headless. endpoints: of every Service. Both by name.
    """
    lines = []
    for service in objects.of("Service"):
        name = service["metadata"]["name"]
        if name in addresses:
            lines.append(f"{addresses[name]} {_full(name, objects.namespace)}")
            continue
        for placed in endpoints.get(name, ()):
            lines.append(f"{placed.address} {_full(name, objects.namespace)}")
            if placed.pod.subdomain == name:
                lines.append(f"{placed.address} {_full(f'{placed.pod.name}.{name}', objects.namespace)}")
    return lines


def _full(name: str, namespace: str) -> str:
    spaced = f"{name}.{namespace}"
    return f"{spaced}.svc.cluster.local {spaced}.svc {spaced} {name}"


def service_rules(
    objects: Objects,
    addresses: Mapping[str, str],
    endpoints: Mapping[str, Sequence[PlacedPod]],
) -> str:
    """Rules for nft that lead a pod's connections from a Service's address to one of its pods, at random.

    Connections stay with their pod, as with kube-proxy. A port without pods refuses connections.
    """
    targets, refusals = [], []
    for service in objects.of("Service"):
        name = service["metadata"]["name"]
        if name not in addresses:
            continue
        for port in service["spec"].get("ports") or []:
            match = f"ip daddr {addresses[name]} {port.get('protocol', 'TCP').lower()} dport {port['port']}"
            places = _places(port, endpoints.get(name, ()))
            if places:
                table = ", ".join(f"{number} : {place}" for number, place in enumerate(places))
                targets.append(f"{match} dnat to numgen random mod {len(places)} map {{ {table} }}")
        refusals.append(f"ip daddr {addresses[name]} reject")
    return _TABLE.format(
        targets="\n    ".join(targets),
        refusals="\n    ".join(refusals),
    )


def _places(port: Manifest, pods: Sequence[PlacedPod]) -> list[str]:
    """`address . port` of each pod."""
    target = port.get("targetPort", port["port"])
    numbered = [(placed.address, port_number(target, placed.pod.spec)) for placed in pods]
    return [f"{address} . {number}" for address, number in numbered if number is not None]


_TABLE = """\
table ip services
delete table ip services
table ip services {{
  chain targets {{
    type nat hook output priority -100; policy accept;
    {targets}
  }}
  chain refusals {{
    type filter hook output priority -10; policy accept;
    {refusals}
  }}
}}
"""
