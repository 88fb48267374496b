"""What a gateway knows of a worker's load: the worker's last report, and what was sent to it since."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memserve.policy.routing.costs import EngineCosts

BUCKET_S = 0.5
BUCKETS = 24


class WaitingTime:
    """Seconds of an engine's time that wait, by band and deadline.

    A gateway that knew only their sum would read too long a queue: a request waits only for those that go
    before it.
    """

    __slots__ = ("_bands", "_from_s", "_sent", "total_s")

    def __init__(self, from_s: float) -> None:
        """from_s: the deadline at which the first bucket begins. What is due after the last counts in it."""
        self._from_s = from_s
        self._bands: dict[int, list[float]] = {}
        self._sent: list[tuple[int, float, float]] = []
        self.total_s = 0.0

    def send(self, band: int, deadline_s: float, seconds: float) -> None:
        """Count a request that the report does not have yet, with its very deadline."""
        self._sent.append((band, deadline_s, seconds))
        self.total_s += seconds

    def add(self, band: int, deadline_s: float, seconds: float) -> None:
        if band not in self._bands:
            self._bands[band] = [0.0] * BUCKETS
        place = max(0.0, min((deadline_s - self._from_s) / BUCKET_S, BUCKETS - 1))
        self._bands[band][int(place)] += seconds
        self.total_s += seconds

    def before_s(self, band: int, deadline_s: float) -> float:
        """The seconds that go before a request of this band and deadline."""
        before = 0.0
        for other, its_deadline_s, seconds in self._sent:
            if (other, its_deadline_s) <= (band, deadline_s):
                before += seconds
        place = (deadline_s - self._from_s) / BUCKET_S
        for other, buckets in self._bands.items():
            if other < band or (other == band and place >= BUCKETS - 1):
                before += sum(buckets)
            elif other == band and place > 0:
                whole = int(place)
                before += sum(buckets[:whole]) + buckets[whole] * (place - whole)
        return before

    @property
    def by_band(self) -> Mapping[int, Sequence[float]]:
        """[buckets] seconds by deadline, from the first bucket on."""
        return self._bands

    @classmethod
    def of(cls, from_s: float, by_band: Mapping[int, Sequence[float]]) -> WaitingTime:
        """As a worker has reported them. Buckets that there are not, and seconds that are none, are left
        out."""
        waiting = cls(from_s)
        for band, buckets in by_band.items():
            seconds = [each if math.isfinite(each) and each > 0 else 0.0 for each in buckets[:BUCKETS]]
            waiting._bands[band] = [*seconds, *(0.0 for _ in range(BUCKETS - len(seconds)))]
            waiting.total_s += sum(seconds)
        return waiting

    def copy(self) -> WaitingTime:
        copy = WaitingTime(self._from_s)
        copy._bands = {band: list(buckets) for band, buckets in self._bands.items()}
        copy._sent = list(self._sent)
        copy.total_s = self.total_s
        return copy


@dataclass(slots=True)
class WorkerLoad:
    """One worker. A gateway changes its own copy when it sends a request."""

    worker: str
    at_s: float
    """When the worker made the report."""
    costs: EngineCosts
    waiting: WaitingTime
    """In the worker's waiting room."""
    prefill_s: float = 0.0
    """Time of the engine for the prompts that it has taken and not computed yet."""
    seat_s: float = 0.0
    """How long it takes until an answer leaves its seat, where all are taken."""
    answers: int = 0
    """Requests that the engine answers."""
    kv_tokens: int = 0
    """Of those."""
    free_tokens: float = math.inf
    """How many more KV tokens the engine takes."""
    released_tokens_per_s: float = 0.0
    """How fast ending answers free KV. 0: not measured."""
    fetch_free_s: float = 0.0
    """When the loads from Redis that are under way have arrived."""
    fetch_tokens_per_s: float = 0.0
    """How fast KV arrives from Redis. 0: this worker fetches nothing."""
    requests: int = 0
    """Unfinished requests, the waiting ones too."""
    queued_tokens: int = 0
    """Prompt tokens that are yet to be computed, the waiting requests' too."""

    def sent(self, band: int, deadline_s: float, own_s: float, tokens: int) -> None:
        """Count a request that goes to the worker now. tokens: those that are not cached."""
        self.waiting.send(band, deadline_s, own_s)
        self.requests += 1
        self.queued_tokens += tokens

    def pushed(self, prefill_s: float, tokens: int) -> None:
        """As `sent`, where requests go into the engine's own queue. prefill_s: the engine's time for it."""
        self.prefill_s += prefill_s
        self.requests += 1
        self.queued_tokens += tokens
