"""Rendered objects run as pods: probes, Services, policies, roll-outs, the end of a pod. As root."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loadtests.cluster.hosts import network
from loadtests.cluster.kubelet.cluster import Cluster
from loadtests.cluster.kubelet.image import Image
from loadtests.cluster.kubelet.pod import RunningPod
from tests.cluster.kubelet.toy import manifests

IMAGE = Image({"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})
TIMEOUT_S = 60.0
GET = """
import sys, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2])).read().decode())
except OSError as error:
    print(repr({"failure": str(error)}))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with network("kt", 87) as hosts, Cluster(hosts, folder, lambda name: IMAGE) as running:
        running.apply(manifests())
        running.wait_until_rolled_out(TIMEOUT_S)
        yield running


def caller(cluster: Cluster, name: str, labels: dict[str, str]) -> RunningPod:
    container = {"name": "caller", "image": "toy", "command": ["sleep", "600"]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    pod = cluster.run_pod({"kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
    deadline_s = time.monotonic() + TIMEOUT_S
    while not pod.ready:
        assert time.monotonic() < deadline_s, pod.record
        time.sleep(0.02)
    return pod


@pytest.fixture(scope="module")
def allowed(cluster: Cluster) -> RunningPod:
    return caller(cluster, "allowed", {"caller": "yes"})


def get(pod: RunningPod, url: str, timeout_s: float = 10.0) -> dict[str, Any]:
    log = pod.log.stat().st_size
    pod.execute(["python3", "-c", GET, url, str(timeout_s)])
    return ast.literal_eval(pod.log.read_text(encoding="utf-8")[log:].strip().splitlines()[-1])


def test_a_container_is_what_its_manifest_says(cluster: Cluster, allowed: RunningPod) -> None:
    pod = cluster.pods("Deployment/toy")[0]
    answer = get(allowed, f"http://{pod.address}:8080/")
    assert (answer["name"], answer["address"]) == (pod.pod.name, pod.address)
    assert (answer["uid"], answer["secret"]) == (10001, "pass-word")
    assert answer["pid"] == 1, "its command is process 1, as in a container"
    # Services are in the environment, as Kubernetes puts them there.
    assert {"NAME", "HOSTNAME", "TOY_PORT", "TOY_SERVICE_HOST"} <= set(answer["variables"])
    assert not any(name.startswith("MEMSERVE") for name in answer["variables"])
    assert pod.execute(["touch", "/tmp/written"]) == 0
    assert pod.execute(["touch", "/written"]) != 0
    assert pod.execute(["sh", "-c", "grep -q '^CapBnd:.*0000000000000000$' /proc/self/status"]) == 0


def test_a_service_leads_to_each_of_its_ready_pods(cluster: Cluster, allowed: RunningPod) -> None:
    names = {get(allowed, "http://toy/").get("name") for _ in range(12)}
    assert names == {pod.pod.name for pod in cluster.pods("Deployment/toy")}


def test_policies_let_in_and_out_what_they_name(cluster: Cluster, allowed: RunningPod) -> None:
    stranger = caller(cluster, "stranger", {"caller": "no"})
    assert "failure" in get(stranger, "http://toy/", timeout_s=1.0)
    # The toy may call nobody: its policy has no egress.
    pod = cluster.pods("Deployment/toy")[0]
    assert "failure" in get(pod, f"http://{allowed.address}:1/", timeout_s=1.0)
    assert pod.host.listening() == {("0.0.0.0", 8080)}
    cluster.delete_pod("stranger")


def test_a_container_that_is_sick_is_started_again(cluster: Cluster) -> None:
    pod = cluster.pods("Deployment/toy")[0]
    assert pod.execute(["touch", "/tmp/sick"]) == 0
    until(lambda: pod.record.restarts == 1)
    # What its init container wrote is still there: volumes outlive containers.
    cluster.wait_until_rolled_out(TIMEOUT_S)


def test_no_request_fails_while_the_pods_are_replaced(cluster: Cluster, allowed: RunningPod) -> None:
    before = {pod.pod.name for pod in cluster.pods("Deployment/toy")}
    cluster.apply(manifests("two"))
    answers = []
    while not cluster.rolled_out():
        answers.append(get(allowed, "http://toy/slow"))
    assert [answer for answer in answers if "failure" in answer] == []
    assert get(allowed, "http://toy/")["version"] == "two"
    old = [record for record in cluster.records if record.name in before]
    assert [record.statuses[-1] for record in old] == [0, 0] and not any(record.killed for record in old)
    assert all(record.ended_s - record.deleted_s > 1.4 for record in old), "it drains for 1.5 s"


def test_old_pods_go_on_while_new_ones_do_not_become_ready(cluster: Cluster, allowed: RunningPod) -> None:
    cluster.apply(manifests("three", starts_for_s=1000))
    until(lambda: len(cluster.pods("Deployment/toy")) == 3)
    time.sleep(1.0)
    assert {get(allowed, "http://toy/").get("version") for _ in range(6)} == {"two"}
    assert len(cluster.pods("Deployment/toy")) == 3 and not cluster.rolled_out()
    cluster.apply(manifests("two"))
    cluster.wait_until_rolled_out(TIMEOUT_S)


def until(true: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
