"""Kills parts of a running memserve, and waits until everything runs again."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self, TypeVar

import psutil
import redis

from loadtests.harness.figures import report
from loadtests.harness.up import is_engine
from memserve.client import CallFailed, Client
from memserve.embedded import Stack
from memserve.errors import MemserveError

T = TypeVar("T")
GATEWAY, REGISTRY, WORKER = "gateway", "registry", "worker"
# The share of the kills that come right after a change of the registry, at most JUST_AFTER_S later. The
# others come at any time of the usual duration.
AT_A_CHANGE, JUST_AFTER_S = 0.4, 0.02
EVENTS_KEY = "memserve:module:events:7:default"
PATIENCE_S = 120.0


@dataclass
class Figures:
    """What went wrong, one line each, and what each kill met."""

    lost: list[str] = field(default_factory=list)
    inconsistent: list[str] = field(default_factory=list)
    never_done: list[str] = field(default_factory=list)
    met: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By the kind of the operation, what was killed, and what became of the operation."""
    under_way: int = 0
    """Kills while the operation was under way."""
    recovery_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By what was killed: from the kill until everything runs again."""


class Killer:
    """Does calls and kills a process meanwhile. Has a connection to the registry, to see changes, while the
    `with` block runs.
    """

    def __init__(self, stack: Stack, workers: int, rng: random.Random, figures: Figures) -> None:
        self._stack = stack
        self._workers = workers
        self._rng = rng
        self._figures = figures
        self._registry = redis.Redis.from_url(stack.settings.redis)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._registry.close()

    def client(self) -> Client:
        """A new one every time: its channel connects at once, whatever happened before."""
        return Client(self._stack.address, timeout_s=60.0)

    def attempt(
        self, what: str, call: Callable[[Client], None], victim: str, usual_s: float
    ) -> CallFailed | None:
        """Call, and kill within the call's usual duration. Returns when everything runs again."""
        with self.client() as client:
            worker = self._rng.choice(client.status().workers)
        at_a_change, engine = self._rng.random() < AT_A_CHANGE, self._rng.random() < 0.5
        delay_s = self._rng.uniform(0, JUST_AFTER_S if at_a_change else usual_s)
        report(f"{what}, {victim} {delay_s * 1000:.0f} ms after {'a change' if at_a_change else 'its begin'}")
        with self.client() as client, ThreadPoolExecutor(1) as pool:
            events = self._events()
            calling = pool.submit(call, client)
            while at_a_change and not calling.done() and self._events() == events:
                pass
            time.sleep(delay_s)
            self._figures.under_way += not calling.done()
            killed_s = time.monotonic()
            match victim:
                case "gateway":
                    self._kill(self._stack.gateway_process.pid if self._stack.gateway_process else 0)
                case "registry":
                    self._kill(self._stack.registry_process.pid if self._stack.registry_process else 0)
                case _:
                    self._kill(worker.pid, engine=engine)
            failure = calling.exception()
        eventually("recovery", lambda: self._recovered(worker.worker_id if victim == WORKER else ""))
        self._figures.recovery_s[victim].append(time.monotonic() - killed_s)
        if failure is not None and not isinstance(failure, CallFailed):
            raise failure
        return failure

    def _events(self) -> int:
        return int(self._registry.xlen(EVENTS_KEY))

    def _kill(self, pid: int, *, engine: bool = False) -> None:
        process = psutil.Process(pid)
        if engine:
            process = next(child for child in process.children(recursive=True) if is_engine(child))
        process.kill()

    def _recovered(self, gone: str) -> bool:
        """Whether everything runs. gone: the worker that was killed, which may count as ready still."""
        with self.client() as client:
            status = client.status()
            client.modules.all()
        ready = {worker.worker_id for worker in status.workers if worker.ready} - {gone}
        return status.redis_ok and len(ready) == self._workers


def eventually(what: str, holds: Callable[[], T]) -> T:
    """What `holds` returns once that is true and nothing fails. Raises RuntimeError after PATIENCE_S."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        failed = ""
        try:
            if result := holds():
                return result
        except (CallFailed, MemserveError) as error:
            failed = str(error)
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"no {what} within {PATIENCE_S:.0f} s {failed}")
        time.sleep(0.1)
