"""Clients that stream long answers without a pause, and what became of each request."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from memserve.client import CallFailed, Client
from memserve.domain import Route, Sampling, TextDelta

ASKERS = 4
TOKENS = 120
CALL_TIMEOUT_S = 60.0
PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that has ended. Times are on the monotonic clock."""

    started_s: float
    ended_s: float
    routes: tuple[tuple[float, str], ...]
    """When the gateway chose which worker: once more for each retry on another."""
    tokens: int
    failure: str
    """The status and what the gateway says. Empty: the request was answered."""

    @property
    def worker_id(self) -> str:
        """The worker that had it last. Empty: none."""
        return self.routes[-1][1] if self.routes else ""


@dataclass
class Load:
    """Askers inside the `with` block, whose end waits for the requests under way."""

    address: str
    asked: list[Asked] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        for number in range(ASKERS):
            thread = threading.Thread(target=self._ask, args=(number,))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def between(self, from_s: float, until_s: float) -> list[Asked]:
        """The requests that were under way in that time."""
        return [asked for asked in list(self.asked) if asked.ended_s >= from_s and asked.started_s <= until_s]

    def _ask(self, number: int) -> None:
        while not self._ending.is_set():
            with Client(self.address, timeout_s=CALL_TIMEOUT_S) as client:
                failed = False
                while not failed and not self._ending.is_set():
                    asked = ask(client, f"Asker {number}: say hello.")
                    self.asked.append(asked)
                    failed = bool(asked.failure)
                    self._ending.wait(PAUSE_S)


def ask(client: Client, question: str) -> Asked:
    """Stream one answer of TOKENS tokens."""
    started_s, routes, tokens, failure = time.monotonic(), [], 0, ""
    sampling = Sampling(max_tokens=TOKENS, min_tokens=TOKENS)
    try:
        for event in client.stream(question, sampling=sampling):
            if isinstance(event, Route):
                routes.append((time.monotonic(), event.worker_id))
            elif isinstance(event, TextDelta):
                tokens += len(event.token_ids)
    except CallFailed as error:
        failure = str(error)
    return Asked(started_s, time.monotonic(), tuple(routes), tokens, failure)


def failed(asked: Sequence[Asked]) -> list[Asked]:
    return [request for request in asked if request.failure]
