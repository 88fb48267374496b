"""The life of one pod: init containers, probes, restarts, and the end within its grace period."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, Signals

from loadtests.cluster.hosts import Host
from loadtests.cluster.kubelet.container import Container, Start, security_of
from loadtests.cluster.kubelet.environment import PodFacts, command_of, environment_of
from loadtests.cluster.kubelet.image import Image, Root
from loadtests.cluster.kubelet.objects import Manifest, ManifestFault, Objects, Pod
from loadtests.cluster.kubelet.prober import probe
from loadtests.cluster.kubelet.probes import KINDS, ContainerHealth, ProbeKind, ProbeTimes, restart_delay_s
from loadtests.cluster.kubelet.volumes import Volumes

TURN_S = 0.05


@dataclass
class PodRecord:
    """What became of a pod. Times are on the monotonic clock; 0: not yet."""

    name: str
    owner: str
    created_s: float
    ready_s: float = 0.0
    """When it was ready first."""
    deleted_s: float = 0.0
    ended_s: float = 0.0
    restarts: int = 0
    killed: bool = False
    """A container outlived the grace period."""
    statuses: list[int] = field(default_factory=list)
    """Exit statuses of its containers."""
    fault: str = ""
    """Why it cannot run, or what the last probe that failed has said."""


@dataclass(frozen=True)
class Place:
    """Where a pod runs, and what it runs with."""

    host: Host
    facts: PodFacts
    folder: Path
    hosts: Path
    objects: Objects
    links: Mapping[str, str]
    image_of: Callable[[str], Image]


class RunningPod:
    """A pod whose life goes on in a thread of its own, until it is deleted or, where it may, has ended."""

    def __init__(self, pod: Pod, place: Place, volumes: Volumes, on_ready: Callable[[str], None]) -> None:
        """on_ready: called with the pod's name, before anybody learns that it is ready."""
        self.pod = pod
        self.address = place.facts.address
        self.host = place.host
        self.record = PodRecord(pod.name, pod.owner, time.monotonic())
        self.ready = False
        self.finished = threading.Event()
        """All of its processes have ended."""
        self._place = place
        self._volumes = volumes
        self._on_ready = on_ready
        self._deleted = threading.Event()
        self._thread = threading.Thread(target=self._live, name=pod.name, daemon=True)
        self._workers = ThreadPoolExecutor(max_workers=3 * len(pod.spec["containers"]))
        self._runs: dict[str, Run] = {}

    @property
    def terminating(self) -> bool:
        return self._deleted.is_set()

    @property
    def log(self) -> Path:
        return self._place.folder / "log"

    def start(self) -> None:
        self._thread.start()

    def delete(self) -> None:
        """Begin its end. Safe to call twice."""
        if not self._deleted.is_set():
            self.record.deleted_s = time.monotonic()
            self._deleted.set()

    def execute(self, command: list[str], timeout_s: float = 60.0) -> int:
        """Run a command in its first container. Returns the exit status."""
        return next(iter(self._runs.values())).container.execute(command, timeout_s)

    def rewrite_volumes(self, objects: Objects) -> None:
        """ConfigMaps and Secrets as they are now."""
        self._volumes.rewrite(self._place.facts, objects)

    def _live(self) -> None:
        try:
            self._volumes.make(self._place.facts, self._place.objects)
            if self._run_initially():
                self._run_containers()
        except (ManifestFault, OSError, subprocess.SubprocessError) as error:
            self.record.fault = f"{type(error).__name__}: {error}"
            self._deleted.wait()
        finally:
            self._end()

    def _run_initially(self) -> bool:
        """Run the init containers. Returns whether the pod is still wanted."""
        for container in self.pod.spec.get("initContainers") or []:
            if container.get("restartPolicy"):
                raise ManifestFault(f"{self.pod.name}: no kubelet of ours has sidecars")
            for restarts in range(1_000):
                if self._deleted.wait(restart_delay_s(restarts)):
                    return False
                run = Run(self._container(container), container, restarts)
                run.container.start()
                while run.container.status() is None and not self._deleted.wait(TURN_S):
                    pass
                if self._deleted.is_set():
                    run.container.kill()
                    return False
                if (status := run.container.status()) == 0:
                    break
                self.record.fault = f"init container {container['name']} ended with {status}"
                self.record.restarts += 1
        return True

    def _run_containers(self) -> None:
        for container in self.pod.spec["containers"]:
            self._begin(container, restarts=0)
        while not self._deleted.wait(TURN_S):
            for run in list(self._runs.values()):
                self._turn(run)
            self._say_ready(
                all(run.health.ready and run.container.status() is None for run in self._runs.values())
            )
            if all(run.over for run in self._runs.values()):
                return

    def _begin(self, manifest: Manifest, restarts: int) -> None:
        run = Run(self._container(manifest), manifest, restarts)
        self._runs[manifest["name"]] = run
        run.container.start()

    def _turn(self, run: Run) -> None:
        """What one container needs now."""
        now_s = time.monotonic()
        if (status := run.container.status()) is not None:
            self._restart_later(run, status, now_s)
            return
        for kind in list(run.asked):
            if run.asked[kind].done():
                fault = run.asked.pop(kind).result()
                self.record.fault = f"{kind}: {fault}" if fault else self.record.fault
                run.health.observe(kind, not fault, now_s)
        for kind in run.health.due(now_s):
            if kind not in run.asked:
                run.asked[kind] = self._workers.submit(
                    probe,
                    run.manifest[f"{kind}Probe"],
                    self.address,
                    self.pod.spec,
                    run.timeout_s(kind),
                    run.container.execute,
                )
        if run.health.must_restart:
            self._say_ready(False)
            self._stop(run, self._grace_s())

    def _restart_later(self, run: Run, status: int, now_s: float) -> None:
        if run.over:
            return
        if run.again_s is None:
            self.record.statuses.append(status)
            policy = self.pod.spec.get("restartPolicy", "Always")
            if policy == "Never" or (policy == "OnFailure" and status == 0):
                run.over = True
                return
            self.record.restarts += 1
            run.again_s = now_s + restart_delay_s(run.restarts)
        if now_s >= run.again_s:
            self._begin(run.manifest, run.restarts + 1)

    def _say_ready(self, ready: bool) -> None:
        if ready and not self.record.ready_s:
            self._on_ready(self.pod.name)
            self.record.ready_s = time.monotonic()
        self.ready = ready

    def _grace_s(self) -> float:
        return float(self.pod.spec.get("terminationGracePeriodSeconds", 30))

    def _stop(self, run: Run, grace_s: float) -> None:
        """preStop, then SIGTERM, and SIGKILL at the end of the grace period, which holds both."""
        deadline_s = time.monotonic() + grace_s
        hook = (run.manifest.get("lifecycle") or {}).get("preStop")
        if hook and run.container.status() is None:
            if pause := hook.get("sleep"):
                time.sleep(min(float(pause["seconds"]), grace_s))
            else:
                fault = probe(hook, self.address, self.pod.spec, grace_s, run.container.execute)
                self.record.fault = f"preStop: {fault}" if fault else self.record.fault
        run.container.signal(SIGTERM)
        if not run.container.wait(max(2.0, deadline_s - time.monotonic())):
            self.record.killed = True
            run.container.kill()

    def _end(self) -> None:
        # Containers end side by side.
        stops = [
            threading.Thread(target=self._stop, args=(run, self._grace_s()), daemon=True)
            for run in self._runs.values()
            if run.container.status() is None
        ]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
        for run in self._runs.values():
            if not run.over and run.again_s is None and (status := run.container.status()) is not None:
                self.record.statuses.append(status)
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._volumes.remove()
        self.ready = False
        self.record.ended_s = time.monotonic()
        self.finished.set()

    def _container(self, manifest: Manifest) -> Container:
        place, image = self._place, self._place.image_of(manifest["image"])
        user, group, capabilities, new_privileges = security_of(manifest, self.pod, image)
        of_pod = self.pod.spec.get("securityContext") or {}
        groups = {int(number) for number in of_pod.get("supplementalGroups") or []}
        if of_pod.get("fsGroup") is not None:
            groups.add(int(of_pod["fsGroup"]))
        environment = {
            "HOME": image.home,
            **image.environment,
            "HOSTNAME": self.pod.name,
            **environment_of(manifest, self.pod, place.facts, place.objects, place.links),
        }
        root = Root(
            folder=place.folder / f"root-{manifest['name']}",
            hosts=place.hosts,
            hostname=self.pod.name,
            mounts=tuple(self._volumes.mounts_of(manifest)),
            image=image,
            read_only=bool((manifest.get("securityContext") or {}).get("readOnlyRootFilesystem")),
            user=user,
            group=group,
            groups=tuple(sorted(groups)),
            capabilities=capabilities,
            new_privileges=new_privileges,
        )
        command = command_of(manifest, environment, image.entrypoint)
        start = Start(root, command, environment, manifest.get("workingDir") or "/")
        return Container(manifest["name"], place.host.namespace, start, self.log)


class Run:
    """One run of a container, and its probes."""

    def __init__(self, container: Container, manifest: Manifest, restarts: int) -> None:
        self.container = container
        self.manifest = manifest
        self.restarts = restarts
        self.again_s: float | None = None
        """When it is started again. None: it has not ended."""
        self.over = False
        """It has ended for good."""
        self.asked: dict[ProbeKind, Future[str]] = {}
        self._times = {
            kind: ProbeTimes.of(manifest[f"{kind}Probe"]) for kind in KINDS if manifest.get(f"{kind}Probe")
        }
        self.health = ContainerHealth(self._times, time.monotonic())

    def timeout_s(self, kind: ProbeKind) -> float:
        return self._times[kind].timeout_s


def said(status: int) -> str:
    """An exit status in words."""
    return f"{Signals(-status).name}" if status < 0 else str(status)
