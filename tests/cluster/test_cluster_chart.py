"""What loadtests.cluster_chart makes of the chart and of the Dockerfile."""

from __future__ import annotations

import pytest

from loadtests.cluster.cluster_chart.asking import Request, overlapping
from loadtests.cluster.cluster_chart.chart import Release, changed, outside_objects, trial_values
from loadtests.cluster.cluster_chart.images import image_of, stages_of
from loadtests.cluster.cluster_chart.reach import Try, Wire, wires
from loadtests.cluster.kubelet.objects import Manifest, Objects, pod_of, ports_of, selects
from loadtests.cluster.kubelet.policies import policies_for
from loadtests.cluster.kubelet.services import PlacedPod


@pytest.fixture(scope="module")
def release() -> Release:
    return Release()


@pytest.fixture(scope="module")
def objects(release: Release) -> list[Manifest]:
    return [*release.render(trial_values(2, 2)), *outside_objects()]


def test_an_upgrade_keeps_the_secrets_that_the_chart_has_made_up(
    release: Release, objects: list[Manifest]
) -> None:
    values = changed(trial_values(2, 2), "gateway", "podAnnotations", to={"restarted": "1"})
    again = [*release.render(values), *outside_objects()]
    assert Objects(again).of("Secret") == Objects(objects).of("Secret")
    moved = [
        name
        for kind in ("Deployment", "StatefulSet")
        for name in (manifest["metadata"]["name"] for manifest in Objects(objects).of(kind))
        if Objects(again).get(kind, name) != Objects(objects).get(kind, name)
    ]
    assert moved == ["memserve-gateway"], "a change of the gateways' values replaces gateways alone"


def test_policies_select_each_pod_of_the_release_in_both_directions(objects: list[Manifest]) -> None:
    for kind in ("Deployment", "StatefulSet"):
        for workload in Objects(objects).of(kind):
            if not workload["metadata"]["name"].startswith("memserve"):
                continue
            placed = PlacedPod(pod_of(workload, "p"), "10.0.0.1", ready=True)
            assert policies_for(placed, Objects(objects), "ingress"), workload["metadata"]["name"]
            assert policies_for(placed, Objects(objects), "egress"), workload["metadata"]["name"]


def test_each_service_leads_to_ports_that_containers_name(objects: list[Manifest]) -> None:
    workloads = [
        pod_of(workload, "p")
        for kind in ("Deployment", "StatefulSet")
        for workload in Objects(objects).of(kind)
    ]
    for service in Objects(objects).of("Service"):
        pods = [pod for pod in workloads if selects({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        assert pods, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            named = {value for pod in pods for own in ports_of(pod.spec) for value in (own.name, own.number)}
            assert port.get("targetPort", port["port"]) in named, (service["metadata"]["name"], port)


def test_an_image_is_what_its_dockerfile_says() -> None:
    stages = stages_of(
        'FROM a AS base\nENV A=1 B="two words"\nENTRYPOINT ["run"]\n'
        "FROM base AS top\nENV A=3 \\\n  C=4\nUSER 7:8\n"
    )
    assert stages["top"].environment == {"A": "3", "B": "two words", "C": "4"}
    assert (stages["top"].entrypoint, stages["top"].user, stages["top"].group) == (("run",), 7, 8)
    gateway = image_of("registry.example.com/memserve/gateway:0.1.0@sha256:abc")
    assert (gateway.user, gateway.entrypoint) == (10001, ("memserve",))
    assert image_of("docker.io/library/redis:7").entrypoint == ()


def test_every_port_of_a_part_is_forbidden_to_all_but_its_callers() -> None:
    table = {(wire.caller, wire.part, wire.port): wire.allowed for wire in wires((6381,))}
    assert table["client", "gateway", 50051] and not table["stranger", "gateway", 50051]
    assert table["gateway", "worker", 50061] and not table["client", "worker", 50061]
    assert table["worker", "head", 6379] and not table["gateway", "head", 6379]
    assert not table["client", "registry", 6379] and not table["worker", "gateway", 50051]
    assert len(table) > 70


def test_a_forbidden_wire_must_give_no_answer_at_all() -> None:
    wanted = {("open", True), ("nothing", False)}
    for answer in ("open", "refused", "nothing"):
        for allowed in (True, False):
            attempt = Try(Wire("a", "b", 1, allowed), answer)
            assert attempt.as_wanted is ((answer, allowed) in wanted)


def test_requests_under_way_at_any_time_of_a_roll_out_count() -> None:
    requests = [Request("r", start, start + 2, "") for start in (0, 3, 5, 9)]
    assert overlapping(requests, 4, 7) == requests[1:3]
