"""Clients that ask without a pause."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.safety.supervision.parts import ANSWER, LIST, REMEMBER, SEARCH
from memserve.client import CallFailed, Client
from memserve.domain import Sampling

CALL_TIMEOUT_S = 30.0
PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has ended. Times are on the monotonic clock."""

    kind: str
    started_s: float
    ended_s: float
    failure: str
    """Empty when the request succeeded."""


@dataclass
class Asking:
    """Clients that ask without a pause, one thread for each kind of request."""

    address: str
    requests: list[Request] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Asking:
        numbers = itertools.count()
        calls: dict[str, Callable[[Client], object]] = {
            ANSWER: lambda client: client.generate("Hello.", sampling=Sampling(max_tokens=8)),
            REMEMBER: lambda client: client.remember(
                "supervision", f"The code of station {next(numbers)} is 4071."
            ),
            SEARCH: lambda client: client.search(["supervision"], "station"),
            LIST: lambda client: client.modules.all(),
        }
        with Client(self.address) as client:
            calls[REMEMBER](client)  # there is something to search
        for kind, call in calls.items():
            thread = threading.Thread(target=self._ask, args=(kind, call))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, kind: str, call: Callable[[Client], object]) -> None:
        while not self._ending.is_set():
            # A new one after a failure: its channel connects at once.
            with Client(self.address, timeout_s=CALL_TIMEOUT_S) as client:
                failure = ""
                while not failure and not self._ending.is_set():
                    started_s = time.monotonic()
                    try:
                        call(client)
                    except CallFailed as error:
                        failure = str(error)
                    self.requests.append(Request(kind, started_s, time.monotonic(), failure))
                    self._ending.wait(PAUSE_S)
