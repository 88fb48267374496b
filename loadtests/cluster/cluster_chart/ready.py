"""Whether a pod can serve at the moment at which it says that it is ready, and since when it could."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import redis

from loadtests.cluster.cluster_chart.chart import RELEASE
from loadtests.cluster.kubelet.pod import RunningPod
from memserve.client import CallFailed, Client
from memserve.domain import Sampling

TRY_S = 0.25
WORKER_SEEN_S = 3.0
"""A gateway sees a new worker's lease a moment after the worker has written it."""


@dataclass
class Checked:
    """A pod that has become ready."""

    pod: str
    part: str
    after_s: float
    """From its making to ready."""
    served: bool
    """A request to it succeeded then."""
    failure: str = ""


@dataclass
class ReadyChecks:
    """Asks each pod as it becomes ready."""

    admin_key: str
    redis_password: str
    gateways: Callable[[], list[RunningPod]]
    """Those that are ready."""
    checked: list[Checked] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def became_ready(self, pod: RunningPod) -> None:
        """Called before any Service leads to the pod."""
        after_s = time.monotonic() - pod.record.created_s
        part = pod.pod.owner.rpartition("/")[2].removeprefix(f"{RELEASE}-")
        if part == "gateway":
            self._check(pod, part, after_s, lambda: self._ask_gateway(pod))
        elif part.startswith("redis"):
            self._check(pod, part, after_s, lambda: self._ask_redis(pod))
        elif part == "worker":
            # In a thread of its own: a gateway needs a moment to see the worker.
            check = threading.Thread(
                target=self._check, args=(pod, part, after_s, lambda: self._ask_worker(pod))
            )
            check.start()
            self._threads.append(check)

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def _check(self, pod: RunningPod, part: str, after_s: float, ask: Callable[[], object]) -> None:
        failure = ""
        try:
            ask()
        except (CallFailed, redis.RedisError, TimeoutError) as error:
            failure = f"{type(error).__name__}: {error}"
        self.checked.append(Checked(pod.pod.name, part, after_s, not failure, failure))

    def _ask_gateway(self, pod: RunningPod) -> None:
        with Client(f"{pod.address}:50051", self.admin_key, timeout_s=5.0) as client:
            client.namespaces()
            client.modules.all()

    def _ask_redis(self, pod: RunningPod) -> None:
        with redis.Redis(pod.address, password=self.redis_password, socket_timeout=5.0) as client:
            client.ping()

    def _ask_worker(self, pod: RunningPod) -> None:
        """An answer of this worker, from any gateway, within `WORKER_SEEN_S` of being ready."""
        deadline_s, failure = time.monotonic() + WORKER_SEEN_S, "no gateway is ready"
        while True:
            for gateway in self.gateways():
                try:
                    with Client(f"{gateway.address}:50051", self.admin_key, timeout_s=60.0) as client:
                        workers = client.status(workers_only=True).workers
                        own = [worker for worker in workers if worker.address.startswith(f"{pod.address}:")]
                        if own and own[0].ready:
                            client.generate(
                                "Hello.", worker_id=own[0].worker_id, sampling=Sampling(max_tokens=2)
                            )
                            return
                        failure = f"{gateway.pod.name} does not know it as ready"
                except CallFailed as error:
                    failure = str(error)
            if time.monotonic() > deadline_s:
                raise TimeoutError(failure)
            time.sleep(TRY_S)
