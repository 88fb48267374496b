"""What manifests mean: environment, files, names, endpoints, policies."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from loadtests.cluster.kubelet.environment import PodFacts, command_of, environment_of, service_links
from loadtests.cluster.kubelet.objects import ManifestFault, Objects, Pod, lone_pod, selects
from loadtests.cluster.kubelet.policies import policy_rules
from loadtests.cluster.kubelet.services import PlacedPod, endpoints_of, host_lines, service_rules
from loadtests.cluster.kubelet.volumes import files_of, size_bytes, write_files

FACTS = PodFacts("10.1.0.9", "node", "10.1.0.1")


def pod(name: str, spec: dict[str, Any] | None = None, **labels: str) -> Pod:
    ports = [{"name": "calls", "containerPort": 50061}]
    spec = {"containers": [{"name": "c", "image": "i", "ports": ports}], **(spec or {})}
    return lone_pod({"kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})


def named(kind: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name}, **rest}


CONFIG = named("ConfigMap", "c", data={"A": "1", "B": "two"})
SECRET = named("Secret", "s", data={"key": base64.b64encode(b"hidden").decode()})
SERVICE = named(
    "Service", "memserve", spec={"selector": {"app": "g"}, "ports": [{"name": "grpc", "port": 50051}]}
)


def test_the_environment_is_what_the_manifest_says() -> None:
    container = {
        "name": "c",
        "envFrom": [
            {"prefix": "P_", "configMapRef": {"name": "c"}},
            {"secretRef": {"name": "x", "optional": True}},
        ],
        "env": [
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
            {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": True}}},
            {"name": "URL", "value": "http://$(IP)/$(WHAT)$$(IP)"},
        ],
        "command": ["run"],
        "args": ["$(KEY)"],
    }
    environment = environment_of(container, pod("p"), FACTS, Objects([CONFIG, SECRET]), {"L": "link"})
    assert environment == {
        "L": "link", "P_A": "1", "P_B": "two", "IP": "10.1.0.9", "KEY": "hidden",
        "URL": "http://10.1.0.9/$(WHAT)$(IP)",
    }  # fmt: skip
    assert command_of(container, environment, ("entry",)) == ["run", "hidden"]
    without = pod("p", {"enableServiceLinks": False})
    assert "L" not in environment_of(container, without, FACTS, Objects([CONFIG, SECRET]), {"L": "link"})


@pytest.mark.parametrize(
    "variable",
    [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "absent"}}},
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "k"}}},
        {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.nothing"}}},
        {"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    ],
)
def test_what_a_kubelet_cannot_resolve_is_a_fault(variable: dict[str, Any]) -> None:
    with pytest.raises(ManifestFault):
        environment_of({"name": "c", "env": [variable]}, pod("p"), FACTS, Objects([SECRET]), {})


def test_a_service_puts_variables_into_pods() -> None:
    links = service_links(Objects([SERVICE]), {"memserve": "10.2.1.1"})
    assert links["MEMSERVE_PORT"] == "tcp://10.2.1.1:50051"
    assert links["MEMSERVE_SERVICE_PORT_GRPC"] == "50051"


def test_a_volume_changes_as_a_whole_behind_its_names(tmp_path: Path) -> None:
    volume = {"name": "v", "projected": {"sources": [
        {"configMap": {"name": "c", "items": [{"key": "A", "path": "below/a"}]}}, {"secret": {"name": "s"}},
    ]}}  # fmt: skip
    files = files_of(volume, pod("p"), FACTS, Objects([CONFIG, SECRET]))
    assert files is not None
    write_files(tmp_path, files, group=4321)
    assert (tmp_path / "below/a").read_text(encoding="utf-8") == "1"
    assert (tmp_path / "key").is_symlink() and (tmp_path / "key").stat().st_gid == 4321
    write_files(tmp_path, {name: file for name, file in files.items() if name == "key"}, group=4321)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("..")} == {"key"}
    assert len(list(tmp_path.glob("..2*"))) == 1


@pytest.mark.parametrize(("quantity", "size"), [("64Mi", 64 << 20), ("2G", 2 * 10**9), (5, 5)])
def test_sizes(quantity: str, size: int) -> None:
    assert size_bytes(quantity) == size


def test_selectors() -> None:
    labels = {"app": "g", "tier": "front"}
    assert selects({}, labels) and not selects(None, labels)
    assert selects({"matchLabels": {"app": "g"}}, labels) and not selects(
        {"matchLabels": {"app": "w"}}, labels
    )
    for operator, values, holds in (
        ("In", ["front"], True),
        ("NotIn", ["front"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ):
        expression = {"key": "tier", "operator": operator, "values": values}
        assert selects({"matchExpressions": [expression]}, labels) is holds


def test_only_ready_pods_that_stay_answer_for_a_service() -> None:
    g = [PlacedPod(pod(f"g{n}", app="g"), f"10.1.0.{n}", ready=n != 1, terminating=n == 2) for n in range(4)]
    other = PlacedPod(pod("w", app="w"), "10.1.0.9", ready=True)
    assert [placed.pod.name for placed in endpoints_of(SERVICE, [*g, other])] == ["g0", "g3"]
    headless = named("Service", "all", spec={
        "selector": {"app": "g"}, "clusterIP": "None", "publishNotReadyAddresses": True})  # fmt: skip
    assert len(endpoints_of(headless, g)) == 4


def test_names_and_rules_lead_to_the_endpoints() -> None:
    headless = named("Service", "ray", spec={"selector": {"app": "r"}, "clusterIP": "None"})
    head = PlacedPod(pod("ray-0", {"subdomain": "ray"}, app="r"), "10.1.0.5", ready=True)
    gateway = PlacedPod(pod("g", app="g"), "10.1.0.6", ready=True)
    objects = Objects([SERVICE, headless], "space")
    endpoints = {"memserve": [gateway], "ray": [head]}
    lines = host_lines(objects, {"memserve": "10.2.1.1"}, endpoints)
    assert [line.split()[0] for line in lines] == ["10.2.1.1", "10.1.0.5", "10.1.0.5"]
    assert "ray-0.ray.space.svc.cluster.local" in lines[2] and lines[2].endswith(" ray-0.ray")
    rules = service_rules(objects, {"memserve": "10.2.1.1"}, endpoints)
    assert (
        "ip daddr 10.2.1.1 tcp dport 50051 dnat to numgen random mod 1 map { 0 : 10.1.0.6 . 50051 }" in rules
    )
    assert "dnat" not in service_rules(objects, {"memserve": "10.2.1.1"}, {})


def rules_of(placed: PlacedPod, policy: dict[str, Any], others: list[PlacedPod]) -> str:
    policy = named("NetworkPolicy", "n", spec=policy)
    return policy_rules(placed, [placed, *others], Objects([policy], "space"), "10.1.0.1")


def test_a_policy_allows_what_it_names_and_nothing_else() -> None:
    worker = PlacedPod(pod("w", app="w"), "10.1.0.7", ready=True)
    gateway = PlacedPod(pod("g", app="g"), "10.1.0.6", ready=True)
    rules = rules_of(worker, {
        "podSelector": {"matchLabels": {"app": "w"}},
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "g"}}}], "ports": [{"port": "calls"}]},
            {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]},
            {"from": [{"ipBlock": {"cidr": "10.9.0.0/16", "except": ["10.9.1.0/24"]}}],
             "ports": [{"port": 6400, "endPort": 6499}]},
        ],
    }, [gateway])  # fmt: skip
    ingress, egress = rules.split("chain egress")
    assert "policy drop" in ingress and "policy accept" in egress
    allowed = [line.strip() for line in ingress.splitlines() if line.strip().startswith("ip saddr")]
    assert allowed == [
        "ip saddr 10.1.0.1 accept",
        "ip saddr 10.1.0.6 tcp dport 50061 accept",
        "ip saddr 10.9.0.0/16 ip saddr != { 10.9.1.0/24 } tcp dport 6400-6499 accept",
    ]


def test_a_policy_without_peers_or_ports_means_all_of_them() -> None:
    worker = PlacedPod(pod("w", app="w"), "10.1.0.7", ready=True)
    rules = rules_of(worker, {"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"ports": [{"port": 53, "protocol": "UDP"}]}, {"to": [{"namespaceSelector": {}}]}]}, [])  # fmt: skip
    ingress, egress = rules.split("chain egress")
    assert "policy accept" in ingress and "policy drop" in egress
    assert "\n    udp dport 53 accept" in egress and "ip daddr 10.1.0.7 accept" in egress


def test_a_pod_that_no_policy_selects_is_open() -> None:
    worker = PlacedPod(pod("w", app="w"), "10.1.0.7", ready=True)
    assert "policy drop" not in rules_of(worker, {"podSelector": {"matchLabels": {"app": "g"}}}, [])
