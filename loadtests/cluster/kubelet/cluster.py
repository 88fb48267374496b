"""A cluster of one namespace: keeps the pods of Deployments and StatefulSets as their manifests want them."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from loadtests.cluster.hosts import HostsError, Network
from loadtests.cluster.kubelet.environment import PodFacts, service_links
from loadtests.cluster.kubelet.image import TREE, Image
from loadtests.cluster.kubelet.objects import (
    Manifest,
    ManifestFault,
    Objects,
    Pod,
    lone_pod,
    pod_of,
    revision_of,
)
from loadtests.cluster.kubelet.pod import Place, PodRecord, RunningPod
from loadtests.cluster.kubelet.policies import policy_rules
from loadtests.cluster.kubelet.rollout import (
    Deployment,
    PodState,
    StatefulSet,
    Step,
    deployment_step,
    stateful_step,
)
from loadtests.cluster.kubelet.services import (
    PlacedPod,
    endpoints_of,
    host_lines,
    service_addresses,
    service_rules,
)
from loadtests.cluster.kubelet.volumes import Volumes

TURN_S = 0.1
ENDPOINTS_LATE_S = 1.0
"""How long a pod still gets new connections after its end has begun: clusters need that time to say so."""
WORKLOADS = ("Deployment", "StatefulSet")
_NOT_RUN = ("DaemonSet", "ReplicaSet", "CronJob", "RayService", "RayCluster")
_LETTERS = "bcdfghjklmnpqrstvwxz"


class Cluster:
    """Runs what was applied, in a thread of its own, until it is closed."""

    def __init__(
        self,
        network: Network,
        folder: Path,
        image_of: Callable[[str], Image],
        *,
        namespace: str = "default",
        service_network: int = 196,
        on_ready: Callable[[RunningPod], None] = lambda pod: None,
    ) -> None:
        """folder: of logs, volumes and claims. image_of: an image by its reference in a manifest.

        service_network: the second byte of the Services' addresses.
        on_ready: called for each pod as it is ready first, before any Service leads to it.
        """
        self.network = network
        self.namespace = namespace
        self.records: list[PodRecord] = []
        self._folder = folder
        self._image_of = image_of
        self._service_network = service_network
        self._on_ready = on_ready
        self._objects = Objects([], namespace)
        self._pods: dict[str, RunningPod] = {}
        self._addresses: dict[str, str] = {}
        self._applied: dict[str, tuple[str, ...]] = {}
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="cluster", daemon=True)

    def __enter__(self) -> Cluster:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete all pods, and wait until they have ended."""
        self._closing.set()
        self._thread.join()
        with self._lock:
            for pod in self._pods.values():
                pod.delete()
            for pod in list(self._pods.values()):
                pod.finished.wait()
                self._remove(pod)

    def apply(self, manifests: Iterable[Manifest]) -> None:
        """Take the objects in the place of all that was applied before. Raises ManifestFault."""
        objects = Objects(manifests, self.namespace)
        for kind in _NOT_RUN:
            if objects.of(kind):
                raise ManifestFault(f"no kubelet of ours runs a {kind}")
        with self._lock:
            self._objects = objects
            addresses = service_addresses(objects, self._service_network)
            moved = {
                name for name in addresses if self._addresses.get(name, addresses[name]) != addresses[name]
            }
            if moved:
                raise ManifestFault(f"a Service keeps its address: {', '.join(sorted(moved))}")
            self._addresses = addresses
            for pod in self._pods.values():
                if not pod.terminating and not pod.record.fault:
                    pod.rewrite_volumes(objects)

    def run_pod(self, manifest: Manifest) -> RunningPod:
        """Start a pod of its own."""
        with self._lock:
            return self._create(lone_pod(manifest))

    def delete_pod(self, name: str) -> None:
        with self._lock:
            self._pods[name].delete()

    def pods(self, owner: str = "") -> list[RunningPod]:
        """owner: `Kind/name` of a workload. Empty: all pods."""
        with self._lock:
            return [pod for pod in self._pods.values() if not owner or pod.pod.owner == owner]

    def service_address(self, name: str) -> str:
        return self._addresses[name]

    def rolled_out(self, owners: Collection[str] = ()) -> bool:
        """Whether every pod of the workloads is of the present template and ready, and no other one is left.

        owners: `Kind/name`. Empty: all workloads. Raises what ended the cluster's thread.
        """
        if self._failure is not None:
            raise self._failure
        with self._lock:
            return all(
                self._is_rolled_out(manifest)
                for kind in WORKLOADS
                for manifest in self._objects.of(kind)
                if not owners or f"{kind}/{manifest['metadata']['name']}" in owners
            )

    def wait_until_rolled_out(self, timeout_s: float, owners: Collection[str] = ()) -> None:
        """Raises TimeoutError with what the pods lack."""
        deadline_s = time.monotonic() + timeout_s
        while not self.rolled_out(owners):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"not rolled out after {timeout_s:g} s: {self.describe()}")
            time.sleep(TURN_S)

    def describe(self) -> str:
        """The pods in one line."""
        return "; ".join(
            f"{pod.pod.name} {'terminating' if pod.terminating else 'ready' if pod.ready else 'not ready'}"
            + (f" ({pod.record.fault})" if pod.record.fault else "")
            for pod in self.pods()
        )

    def _is_rolled_out(self, manifest: Manifest) -> bool:
        pods = self.pods(owner_of(manifest))
        revision = revision_of(manifest["spec"]["template"])
        wanted = int(manifest["spec"].get("replicas", 1))
        return len(pods) == wanted and all(
            pod.pod.revision == revision and pod.ready and not pod.terminating for pod in pods
        )

    def _live(self) -> None:
        try:
            while not self._closing.wait(TURN_S):
                with self._lock:
                    self._turn()
        except BaseException as error:
            self._failure = error
            raise

    def _turn(self) -> None:
        for pod in list(self._pods.values()):
            if pod.finished.is_set() and pod.terminating:
                self._remove(pod)
        known = set()
        for kind in WORKLOADS:
            for manifest in self._objects.of(kind):
                known.add(owner_of(manifest))
                self._step(manifest)
        for pod in self._pods.values():
            if pod.pod.owner and pod.pod.owner not in known:
                pod.delete()
        self._lead()

    def _step(self, manifest: Manifest) -> None:
        """Make and delete pods of one workload."""
        owner, name = owner_of(manifest), manifest["metadata"]["name"]
        states = [_state(pod) for pod in self._pods.values() if pod.pod.owner == owner]
        revision = revision_of(manifest["spec"]["template"])
        if manifest["kind"] == "StatefulSet":
            step: Step = stateful_step(StatefulSet.of(manifest), revision, states)
        else:
            step = deployment_step(Deployment.of(manifest), revision, states)
        for victim in step.delete:
            self._pods[victim].delete()
        for ordinal in step.create_ordinals:
            self._create(pod_of(manifest, f"{name}-{ordinal}", ordinal))
        for _ in range(step.create):
            self._create(pod_of(manifest, f"{name}-{revision}-{self._suffix()}"))

    def _suffix(self) -> str:
        number, letters = next(self._numbers), ""
        for _ in range(5):
            number, place = divmod(number, len(_LETTERS))
            letters = _LETTERS[place] + letters
        return letters

    def _create(self, pod: Pod) -> RunningPod:
        host = self.network.host(pod.name)
        folder = self._folder / f"{len(self.records):03}-{pod.name}"
        folder.mkdir(parents=True)
        facts = PodFacts(host.address, "node", self.network.address)
        links = service_links(self._objects, self._addresses)
        place = Place(host, facts, folder, folder / "hosts", self._objects, links, self._image_of)
        volumes = Volumes(folder / "volumes", self._folder / "claims", pod)
        running = RunningPod(pod, place, volumes, self._became_ready)
        self._pods[pod.name] = running
        self.records.append(running.record)
        # The rules stand before its first process.
        self._lead()
        running.start()
        return running

    def _became_ready(self, name: str) -> None:
        self._on_ready(self._pods[name])

    def _remove(self, pod: RunningPod) -> None:
        del self._pods[pod.pod.name]
        self._applied.pop(pod.pod.name, None)
        self.network.remove(pod.host)
        shutil.rmtree(pod.log.parent / "volumes", ignore_errors=True)

    def _lead(self) -> None:
        """Write the names and the rules of every pod, where they have changed."""
        now_s = time.monotonic()
        placed = {pod.pod.name: _placed(pod, now_s) for pod in self._pods.values()}
        everybody = list(placed.values())
        endpoints = {
            service["metadata"]["name"]: endpoints_of(service, everybody)
            for service in self._objects.of("Service")
        }
        names = host_lines(self._objects, self._addresses, endpoints)
        services = service_rules(self._objects, self._addresses, endpoints)
        for name, pod in self._pods.items():
            lines = ["127.0.0.1 localhost", f"{pod.address} {name}", *names]
            policies = policy_rules(placed[name], everybody, self._objects, self.network.address)
            wanted = ("\n".join(lines) + "\n", services, policies)
            if self._applied.get(name) == wanted:
                continue
            _write_over(pod.log.parent / "hosts", wanted[0].encode())
            subprocess.run(
                pod.host.command([nft(), "-f", "-"]),
                input=services + policies,
                check=True,
                encoding="utf-8",
            )
            self._applied[name] = wanted


def nft() -> str:
    """The program that sets rules: on PATH, or as `deploy/tools.sh` unpacks it. Raises HostsError."""
    places = f"{os.environ.get('PATH', '')}:/usr/sbin:{TREE / '.cache/debian/usr/bin'}"
    if (found := shutil.which("nft", path=places)) is None:
        raise HostsError("there is no `nft`; run deploy/tools.sh, or install nftables")
    return found


def _write_over(file: Path, content: bytes) -> None:
    """Write in place, since containers have this very file mounted, and so that no reader sees it empty."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o644), "wb", buffering=0) as written:
        written.write(content)
        written.truncate(len(content))


def owner_of(manifest: Manifest) -> str:
    """`Kind/name` of a workload."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def _state(pod: RunningPod) -> PodState:
    age_s = time.monotonic() - pod.record.created_s
    return PodState(pod.pod.name, pod.pod.revision, pod.ready, pod.terminating, pod.pod.ordinal, age_s)


def _placed(pod: RunningPod, now_s: float) -> PlacedPod:
    """As the Services see it, a little late."""
    gone = pod.terminating and now_s > pod.record.deleted_s + ENDPOINTS_LATE_S
    return PlacedPod(pod.pod, pod.address, pod.ready, gone)
