"""Every wire of memserve is let through, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.charts import (
    NAMES,
    Manifest,
    containers,
    example,
    example_manifests,
    manifests,
    of_kind,
    with_values,
)
from tests.helm.wires import Peer, may, outside, part, pod, taken

NODE = "10.0.3.4"
KUBELET = {"networkPolicy": {"kubeletCidrs": ["10.0.0.0/16"]}}
PARTS = ("gateway", "worker", "ray-head", "redis-registry", "redis-cache", "test")
RAY = {*range(6381, 6387), *range(6400, 6500)}
CALLS = {50061, *range(50063, 50125)}
# Of every two parts of a release, the ports on which the first may call the second.
WIRES: dict[tuple[str, str], set[int]] = {
    ("gateway", "worker"): CALLS,
    ("gateway", "redis-registry"): {6379},
    ("gateway", "redis-cache"): {6379},
    ("worker", "redis-registry"): {6379},
    ("worker", "redis-cache"): {6379},
    ("ray-head", "redis-registry"): {6379},
    ("ray-head", "redis-cache"): {6379},
    ("worker", "worker"): RAY,
    ("ray-head", "worker"): RAY,
    ("worker", "ray-head"): {6379, *RAY},
    ("ray-head", "ray-head"): {6379, *RAY},
    ("test", "gateway"): {50051, 50052},
}


@pytest.mark.parametrize("caller", PARTS)
@pytest.mark.parametrize("called", PARTS)
def test_parts_reach_each_other_on_their_wires_only(caller: str, called: str) -> None:
    open_ports = taken(example_manifests("default"), part(caller), part(called))
    # Clients are the namespace's pods, but the release's own may not call out.
    assert open_ports == WIRES.get((caller, called), set())


def test_strangers_reach_the_gateways_ports_for_clients_and_no_others() -> None:
    objects = example_manifests("default")
    neighbour, stranger = pod(app="web"), pod("elsewhere", app="web")
    for component in PARTS:
        allowed = {50051, 8000} if component == "gateway" else set()
        assert taken(objects, neighbour, part(component)) == allowed
        assert taken(objects, stranger, part(component)) == set()
        assert taken(objects, outside("203.0.113.9"), part(component)) == set()


def test_another_release_in_the_namespace_is_a_stranger_to_workers_and_redis() -> None:
    objects = example_manifests("default") + manifests(name="second")
    for component in ("worker", "ray-head", "redis-registry", "redis-cache"):
        for caller in ("gateway", "worker", "ray-head"):
            assert taken(objects, part(caller, "second"), part(component)) == set()


def test_prometheus_scrapes_metrics_and_nothing_else() -> None:
    objects = example_manifests("default")
    prometheus = pod("monitoring", app="prometheus")
    assert taken(objects, prometheus, part("gateway")) == {9464}
    assert taken(objects, prometheus, part("worker")) == set(range(9465, 9529))
    assert taken(objects, prometheus, part("redis-cache")) == set()
    without = manifests({"metrics": {"enabled": False}})
    assert taken(without, prometheus, part("gateway")) == set()


def test_everybody_asks_the_clusters_dns_and_nobody_else_there() -> None:
    objects = example_manifests("default")
    dns = pod("kube-system", app="dns")
    for component in PARTS:
        assert may(objects, part(component), dns, 53, "UDP") and may(objects, part(component), dns, 53)
        assert taken(objects, part(component), dns) == {53}
        assert not may(objects, part(component), outside("1.1.1.1"), 53, "UDP")


def probe_ports(objects: list[Manifest], component: str) -> set[int]:
    found: set[int] = set()
    for where, _, each in containers(objects):
        names = {port["name"]: port["containerPort"] for port in each.get("ports", ())}
        if f"memserve-{component} " in where or where.endswith(f" {component}"):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                for action in (each[probe].get(kind) for kind in ("grpc", "httpGet", "tcpSocket")):
                    if action:
                        found.add(names.get(action["port"], action["port"]))
    return found


@pytest.mark.parametrize("mode", ["statefulset", "kuberay"])
def test_the_kubelet_reaches_the_probes_where_the_network_needs_to_be_told(mode: str) -> None:
    objects = manifests(with_values(KUBELET, {"workers": {"mode": mode}}))
    names = {"worker": "ray-worker"} if mode == "kuberay" else {}
    for component in ("gateway", "worker", "ray-head", "redis-registry", "redis-cache"):
        ports = probe_ports(objects, names.get(component, component))
        assert ports
        assert taken(objects, outside(NODE), part(component)) == ports
        assert taken(objects, outside("10.9.0.1"), part(component)) == set()


TOKENS = {"jwt_jwks": "https://a/k", "jwt_issuer": "https://a", "jwt_audience": "memserve"}
OUTSIDE = outside("203.0.113.9")
HUBS = {"networkPolicy": {"external": {"enabled": True}}}
TRACED = {"settings": {"traces_endpoint": "http://otel:4317"}}
MILVUS = {"milvus": {"uri": "http://milvus:19530"}}
OWN_REDIS = {
    "redis": {"mode": "external", "external": {"url": "redis://r:7000"}},
    "networkPolicy": {"redis": {"ports": [7000, 26379], "to": [{"ipBlock": {"cidr": "10.7.0.0/24"}}]}},
}
SCALED_RAY = {"workers": {"mode": "kuberay", "kuberay": {"autoscaler": {"enabled": True}}}}
EGRESS: list[tuple[str, dict[str, Any], str, Peer, set[int]]] = [
    ("nothing from a gateway", {}, "gateway", OUTSIDE, set()),
    ("nothing from a worker", {}, "worker", OUTSIDE, set()),
    ("hubs from a worker", HUBS, "worker", OUTSIDE, {443}),
    ("hubs from a gateway", HUBS, "gateway", OUTSIDE, {443}),
    ("keys of tokens", {"settings": TOKENS}, "gateway", OUTSIDE, {443}),
    ("keys of tokens, not for workers", {"settings": TOKENS}, "worker", OUTSIDE, set()),
    ("traces", TRACED, "worker", pod("otel"), {4317}),
    ("traces of the gateway only", {"gateway": TRACED}, "worker", pod("otel"), set()),
    ("Milvus", MILVUS, "gateway", pod("milvus"), {19530}),
    ("Milvus, not for workers", MILVUS, "worker", pod("milvus"), set()),
    ("Redis of one's own", OWN_REDIS, "worker", outside("10.7.0.5"), {7000, 26379}),
    ("Redis of one's own, and not beside it", OWN_REDIS, "worker", outside("10.8.0.5"), set()),
    ("the autoscaler's API", SCALED_RAY, "ray-head", outside("10.96.0.1"), {443, 6443}),
    ("no API for others", {"workers": {"mode": "kuberay"}}, "ray-head", outside("10.96.0.1"), set()),
]


@pytest.mark.parametrize("case", EGRESS, ids=[case[0] for case in EGRESS])
def test_what_is_outside_is_reached_where_values_say_so(
    case: tuple[str, dict[str, Any], str, Peer, set[int]],
) -> None:
    _, values, component, called, ports = case
    assert taken(manifests(values), part(component), called) == ports


def test_kuberays_operator_reaches_the_heads_dashboard_alone() -> None:
    objects = manifests({"workers": {"mode": "kuberay"}})
    operator = pod("kuberay-system", app="operator")
    assert taken(objects, operator, part("ray-head")) == {8265}
    assert taken(objects, operator, part("worker")) == set()
    assert may(objects, part("worker"), part("ray-head"), 8265)


@pytest.mark.parametrize("name", NAMES)
def test_every_port_of_a_pod_is_let_in_for_somebody(name: str) -> None:
    """Declared ports, so that none is forgotten. The reverse is that strangers reach none of them."""
    objects = manifests(with_values(example(name), KUBELET))
    callers = [
        *(part(component) for component in PARTS),
        pod("monitoring"),
        pod("kuberay-system"),
        pod("gateway-system"),
        pod(app="web"),
        outside(NODE),
    ]
    # Ports of agents of this node itself.
    for where, _, each in containers(objects):
        component = {"redis": where.split(" ")[1].split("-", 1)[-1], "ray-worker": "worker"}.get(
            each["name"], each["name"]
        )
        for port in each.get("ports", ()):
            number = port["containerPort"]
            assert any(may(objects, caller, part(component), number) for caller in callers), (where, port)


@pytest.mark.parametrize("name", NAMES)
def test_every_port_of_a_service_is_a_port_of_its_pods(name: str) -> None:
    objects = example_manifests(name)
    pods = [
        (template["metadata"]["labels"], template["spec"]["containers"][0])
        for each in objects
        if each["kind"] in ("Deployment", "StatefulSet")
        for template in [each["spec"]["template"]]
    ]
    services = of_kind(objects, "Service")
    assert len(services) >= 3
    for service in services:
        selector = service["spec"]["selector"]
        [container] = [each for labels, each in pods if selector.items() <= labels.items()]
        names = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_without_policies_nothing_is_rendered_of_them_and_the_notes_say_so() -> None:
    from tests.helm.charts import notes

    values = {"networkPolicy": {"enabled": False}}
    assert of_kind(manifests(values), "NetworkPolicy") == []
    assert "every pod of the cluster reaches Ray's ports" in notes(values)
